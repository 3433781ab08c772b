"""What jobs that classify pictures share."""
