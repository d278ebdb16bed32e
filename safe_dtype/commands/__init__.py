"""What each command does, as functions: facts in, a page of text or plain values out."""
