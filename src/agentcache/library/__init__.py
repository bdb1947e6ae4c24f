"""What programs import: agents with a memory, in this very process."""
