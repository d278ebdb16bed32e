"""The Hugging Face Hub, through its client: the only place that knows its calls and its exceptions."""
