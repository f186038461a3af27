"""What people look at: reports, figures, status tables."""
