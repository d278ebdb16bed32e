"""What an optimization wants, tries and finds, as values and as files. Imports no torch."""
