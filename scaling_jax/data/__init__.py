"""Sources to documents, documents to tokens, steps to windows of tokens."""
