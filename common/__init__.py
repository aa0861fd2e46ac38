"""The ground floor: errors, atomic writes and the one downloader. Everyone may import it; it imports no torch."""
