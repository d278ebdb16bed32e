"""One attempt: a form of a model made, judged and timed in a process of its own."""
