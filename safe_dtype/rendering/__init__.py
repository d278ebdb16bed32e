"""Values as pages and pictures: the one place that writes SVG, tables and JSON with infinities. Imports no torch."""
