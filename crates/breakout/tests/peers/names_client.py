"""An application that resolves before each connection: names_client.py COUNT PORT NAME...

Its sockets are bound to the device that $DEVICE names, if any. Prints as JSON how many connections were greeted, to how many addresses, and what went wrong.
"""

import json
import os
import socket
import sys
import time

# So that names move meanwhile.
PAUSE = 0.01
count, port, names = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]
device = os.environ.get("DEVICE")
greeted, addresses, failures = 0, set(), []
for number in range(count):
    try:
        name = names[number % len(names)]
        address = socket.getaddrinfo(name, port, socket.AF_INET, socket.SOCK_STREAM)[0][4]
        with socket.socket() as connection:
            if device:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
            connection.settimeout(5)
            connection.connect(address)
            if connection.recv(2) == b"ok":
                greeted += 1
                addresses.add(address[0])
    except OSError as error:
        failures.append(f"{number}: {error}")
    time.sleep(PAUSE)
print(json.dumps({"greeted": greeted, "addresses": sorted(addresses), "failures": failures}))
