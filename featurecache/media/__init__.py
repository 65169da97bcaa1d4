"""Media of clips: from a recorded file to frames and a waveform."""
