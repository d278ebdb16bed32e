"""Steps of a decoding loop on a device, whose numbers are judged where the loop reads from the device anyway."""
