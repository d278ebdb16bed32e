"""The folder that becomes the repository: made, measured, described and checked."""
