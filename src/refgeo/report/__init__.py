"""Tables, figures, the claims ledger and the page."""
