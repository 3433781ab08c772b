"""Keys and values of texts that are continued: of those that are being written, and of prompts that came before."""
