"""The kind `transcribe`: one text for each sample."""
