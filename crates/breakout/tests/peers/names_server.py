"""A DNS server whose names move from address to address: names_server.py LISTEN PERIOD_SECONDS FIRST COUNT TTL [NAME=VALUE...]

Every name has one A record, FIRST plus how many periods have passed (modulo COUNT), with a TTL in seconds, and the same
AAAA record. A name that is given has these addresses for good (with commas between them), or, where the value is a name, that
target of an SRV record. A name that begins with many- has 64 addresses that no other name has. Prints each name that it is asked for.
"""

import ipaddress
import socket
import struct
import sys
import time

listen, period, first, count = sys.argv[1], float(sys.argv[2]), ipaddress.ip_address(sys.argv[3]), int(sys.argv[4])
ttl = int(sys.argv[5])
given = dict(pair.split("=") for pair in sys.argv[6:])
A, AAAA, SRV = 1, 28, 33
V6 = ipaddress.ip_address("2600:1f14::10")
MANY = ipaddress.ip_address("45.0.0.0")
LONG_TTL = 1000


def encode(name):
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def addresses(name):
    if name.startswith("many-"):
        return [MANY + 64 * int(name.split(".")[0][5:]) + number for number in range(64)]
    if name in given:
        return [ipaddress.ip_address(address) for address in given[name].split(",")]
    return [first + int(time.monotonic() / period) % count]


def answer(query):
    end, labels = 12, []
    while query[end]:
        labels.append(query[end + 1:end + 1 + query[end]].decode().lower())
        end += query[end] + 1
    name, kind = ".".join(labels), struct.unpack_from("!H", query, end + 1)[0]
    print(name, flush=True)
    holds = ttl
    if kind == A:
        data = [address.packed for address in addresses(name)]
    elif kind == AAAA:
        data = [V6.packed]
    elif kind == SRV and name in given:
        data, holds = [struct.pack("!HHH", 0, 0, 5061) + encode(given[name])], LONG_TTL
    else:
        data = []
    records = b"".join(struct.pack("!HHHIH", 0xC00C, kind, 1, holds, len(one)) + one for one in data)
    header = query[:2] + struct.pack("!HHHHH", 0x8580, 1, len(data), 0, 0)
    return header + query[12:end + 5] + records


server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((listen, 53))
print("ready", flush=True)
while True:
    query, client = server.recvfrom(4096)
    server.sendto(answer(query), client)
