"""A DNS server whose names move from address to address: names_server.py LISTEN PERIOD_SECONDS FIRST COUNT TTL

Every name has one A record, FIRST plus how many periods have passed (modulo COUNT), with a TTL in seconds, and the
same AAAA record.
"""

import ipaddress
import socket
import struct
import sys
import time

listen, period, first, count = sys.argv[1], float(sys.argv[2]), ipaddress.ip_address(sys.argv[3]), int(sys.argv[4])
ttl = int(sys.argv[5])
A, AAAA = 1, 28
V6 = ipaddress.ip_address("2600:1f14::10")


def answer(query):
    end = 12
    while query[end]:
        end += query[end] + 1
    kind = struct.unpack_from("!H", query, end + 1)[0]
    question = query[12:end + 5]
    address = {A: first + int(time.monotonic() / period) % count, AAAA: V6}.get(kind)
    records = struct.pack("!HHHIH", 0xC00C, kind, 1, ttl, len(address.packed)) + address.packed if address else b""
    header = query[:2] + struct.pack("!HHHHH", 0x8580, 1, 1 if records else 0, 0, 0)
    return header + question + records


server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((listen, 53))
print("ready", flush=True)
while True:
    query, client = server.recvfrom(4096)
    server.sendto(answer(query), client)
