"""Who may call the API: tokens and their roles."""
