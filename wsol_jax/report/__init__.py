"""Tables, figures and the page that show what a run gave."""
