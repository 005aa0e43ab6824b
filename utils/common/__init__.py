"""What the other rooms stand on: devices, processes, signals, files, downloads and errors."""
