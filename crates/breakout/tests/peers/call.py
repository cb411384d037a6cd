"""One end of a WebRTC call with a tone each way; prints one JSON object about what it saw.

The two ends exchange their descriptions through files in a directory that both see, since the way there is not what is tested.
"""

import argparse
import array
import asyncio
import fractions
import json
import math
import os
import sys
import time

import aioice.ice
from aiortc import (
    RTCConfiguration,
    RTCIceServer,
    RTCIceTransportPolicy,
    RTCPeerConnection,
    RTCSessionDescription,
)
from aiortc.mediastreams import MediaStreamError, MediaStreamTrack
from av import AudioFrame

RATE = 48_000
SAMPLES = 960  # 20 ms
PATIENCE = 15.0
SETTLE = 1.0  # for packets under way when both ends stop sending
TONAL = 0.8  # of a frame's energy, in the tone that was sent


class Tone(MediaStreamTrack):
    kind = "audio"

    def __init__(self, hertz):
        super().__init__()
        # A whole number of periods fits into 20 ms, so every frame is the same.
        wave = (int(12_000 * math.sin(2 * math.pi * hertz * n / RATE)) for n in range(SAMPLES))
        self.samples = array.array("h", wave).tobytes()
        self.started = None
        self.frames = 0

    async def recv(self):
        if self.started is None:
            self.started = time.monotonic()
        await asyncio.sleep(self.started + self.frames * SAMPLES / RATE - time.monotonic())
        frame = AudioFrame(format="s16", layout="mono", samples=SAMPLES)
        frame.planes[0].update(self.samples)
        frame.sample_rate = RATE
        frame.time_base = fractions.Fraction(1, RATE)
        frame.pts = self.frames * SAMPLES
        self.frames += 1
        return frame


class Ear:
    """Counts frames, and those of them that are the tone."""

    def __init__(self, hertz):
        self.hertz = hertz
        self.frames = 0
        self.tonal = 0

    async def listen(self, track):
        try:
            while True:
                frame = await track.recv()
                self.frames += 1
                self.tonal += self.is_tone(frame)
        except MediaStreamError:
            pass

    def is_tone(self, frame):
        channels = len(frame.layout.channels)
        samples = array.array("h", bytes(frame.planes[0])[: frame.samples * channels * 2])[::channels]
        energy = sum(s * s for s in samples)
        if energy < len(samples) * 1000 * 1000:
            return False
        # Goertzel: the energy at one frequency.
        factor = 2 * math.cos(2 * math.pi * self.hertz / frame.sample_rate)
        one = two = 0.0
        for sample in samples:
            one, two = sample + factor * one - two, one
        power = one * one + two * two - factor * one * two
        return 2 * power / len(samples) / energy > TONAL


async def describe(path, connection):
    text = json.dumps({"type": connection.localDescription.type, "sdp": connection.localDescription.sdp})
    with open(path + ".part", "w") as file:
        file.write(text)
    os.rename(path + ".part", path)


async def described(path):
    until = time.monotonic() + PATIENCE
    while not os.path.exists(path):
        if time.monotonic() > until:
            sys.exit(f"the other end did not write {path}")
        await asyncio.sleep(0.02)
    with open(path) as file:
        return RTCSessionDescription(**json.load(file))


async def connected(connection):
    until = time.monotonic() + PATIENCE
    while connection.connectionState != "connected":
        if connection.connectionState in ("failed", "closed") or time.monotonic() > until:
            sys.exit(f"the call did not connect: {connection.connectionState}, ICE {connection.iceConnectionState}")
        await asyncio.sleep(0.02)


def candidates(description):
    for line in description.sdp.splitlines():
        if line.startswith("a=candidate:"):
            words = line.split()
            yield {"type": words[7], "endpoint": f"{words[4]}:{words[5]}"}


async def call(options):
    if options.only:
        # As a browser does that may use one interface only.
        aioice.ice.get_host_addresses = lambda use_ipv4, use_ipv6: options.only
    servers = []
    if options.stun:
        servers.append(RTCIceServer(f"stun:{options.stun}"))
    if options.turn:
        servers.append(RTCIceServer(f"turn:{options.turn}?transport=udp", options.user, options.password))
    policy = RTCIceTransportPolicy.RELAY if options.turn else RTCIceTransportPolicy.ALL
    connection = RTCPeerConnection(RTCConfiguration(iceServers=servers, iceTransportPolicy=policy))
    ear = Ear(options.hear)
    listening = []
    connection.on("track", lambda track: listening.append(asyncio.ensure_future(ear.listen(track))))
    sender = connection.addTrack(Tone(options.say))

    offer, answer = (os.path.join(options.rendezvous, name) for name in ("offer", "answer"))
    if options.role == "caller":
        await connection.setLocalDescription(await connection.createOffer())
        await describe(offer, connection)
        await connection.setRemoteDescription(await described(answer))
    else:
        await connection.setRemoteDescription(await described(offer))
        await connection.setLocalDescription(await connection.createAnswer())
        await describe(answer, connection)
    await connected(connection)
    print("connected", file=sys.stderr, flush=True)
    began = time.monotonic()
    while time.monotonic() < began + options.seconds:
        if connection.connectionState != "connected":
            sys.exit(f"the call broke after {time.monotonic() - began:.1f} s: {connection.connectionState}")
        await asyncio.sleep(0.1)
    sender.replaceTrack(None)
    await asyncio.sleep(SETTLE)

    stats = [entry for entry in (await connection.getStats()).values()]
    dtls = sender.transport
    pair = dtls.transport._connection._nominated[1]
    result = {
        "dtls": dtls.state,
        "candidates": list(candidates(connection.localDescription)),
        "pair": {
            "local": {"type": pair.local_candidate.type, "endpoint": "%s:%d" % pair.local_addr},
            "remote": {"type": pair.remote_candidate.type, "endpoint": "%s:%d" % pair.remote_addr},
        },
        "sent": sum(entry.packetsSent for entry in stats if entry.type == "outbound-rtp"),
        "received": sum(entry.packetsReceived for entry in stats if entry.type == "inbound-rtp"),
        "lost": sum(entry.packetsLost for entry in stats if entry.type == "inbound-rtp"),
        "frames": ear.frames,
        "tonal": ear.tonal,
    }
    # The other end still counts; closing would end its call.
    await asyncio.sleep(SETTLE)
    await connection.close()
    print(json.dumps(result))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["caller", "peer"])
    parser.add_argument("--rendezvous", required=True, help="a directory that both ends see")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--say", type=int, required=True, help="hertz; a multiple of 50")
    parser.add_argument("--hear", type=int, required=True, help="hertz")
    parser.add_argument("--stun", help="host:port")
    parser.add_argument("--turn", help="host:port; then only the relayed candidate is used")
    parser.add_argument("--user")
    parser.add_argument("--password")
    parser.add_argument("--only", action="append", help="gather on this address only")
    asyncio.run(call(parser.parse_args()))


if __name__ == "__main__":
    main()
