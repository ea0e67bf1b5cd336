"""The train program, and its compile ahead of time in a child process, kept on disk."""
