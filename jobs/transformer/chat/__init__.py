"""Conversations: how a chat template writes them, which of their tokens are an assistant's, and how they are packed."""
