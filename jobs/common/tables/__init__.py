"""What jobs on tables share: reading them, the kinds of their columns, judging, the report's pages, answering."""
