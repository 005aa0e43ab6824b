"""What the other packages use: devices, ranks, files, downloads and errors."""
