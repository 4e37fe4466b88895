"""Which IP addresses are public, and what the others are for. Pure.

The law of this module: an address is public only if it is global unicast, is in no special-purpose range, and does not
carry packets on to an IPv4 address that is. IPv6 is judged from the other side, too: outside the space that is in use
everything is forbidden, so a range that is assigned tomorrow is not open today.

Sources: the IANA special-purpose address registries for IPv4 and IPv6 (RFC 6890, RFC 8190), the IANA IPv6 address
space registry, and the cloud providers' documentation of their metadata services.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

# The first match counts, so a part of a range comes before the range.
_FORBIDDEN_IPV4 = (
    (IPv4Network("169.254.169.254/32"), "cloud metadata"),  # AWS, Azure, Google Cloud, and most others
    (IPv4Network("168.63.129.16/32"), "cloud metadata"),  # Azure's platform services, on a public address
    (IPv4Network("100.100.100.200/32"), "cloud metadata"),  # Alibaba Cloud
    (IPv4Network("192.0.0.192/32"), "cloud metadata"),  # Oracle Cloud
    (IPv4Network("0.0.0.0/32"), "unspecified"),
    (IPv4Network("0.0.0.0/8"), "reserved"),
    (IPv4Network("10.0.0.0/8"), "private"),
    (IPv4Network("100.64.0.0/10"), "carrier-grade NAT"),
    (IPv4Network("127.0.0.0/8"), "loopback"),
    (IPv4Network("169.254.0.0/16"), "link-local"),
    (IPv4Network("172.16.0.0/12"), "private"),
    (IPv4Network("192.0.0.0/24"), "reserved"),
    (IPv4Network("192.0.2.0/24"), "documentation"),
    (IPv4Network("192.88.99.0/24"), "reserved"),  # 6to4 relays, deprecated by RFC 7526
    (IPv4Network("192.168.0.0/16"), "private"),
    (IPv4Network("198.18.0.0/15"), "benchmarking"),
    (IPv4Network("198.51.100.0/24"), "documentation"),
    (IPv4Network("203.0.113.0/24"), "documentation"),
    (IPv4Network("224.0.0.0/4"), "multicast"),
    (IPv4Network("255.255.255.255/32"), "broadcast"),
    (IPv4Network("240.0.0.0/4"), "reserved"),
)
_FORBIDDEN_IPV6 = (
    (IPv6Network("::/128"), "unspecified"),
    (IPv6Network("::1/128"), "loopback"),
    (IPv6Network("::/96"), "IPv4-compatible"),
    (IPv6Network("::ffff:0:0/96"), "IPv4-mapped"),
    (IPv6Network("64:ff9b:1::/48"), "local-use NAT64"),
    (IPv6Network("2001::/32"), "Teredo"),
    (IPv6Network("2001:2::/48"), "benchmarking"),
    (IPv6Network("2001::/23"), "reserved"),  # IETF protocol assignments
    (IPv6Network("2001:db8::/32"), "documentation"),
    (IPv6Network("2002::/16"), "6to4"),
    (IPv6Network("3fff::/20"), "documentation"),
    (IPv6Network("fd00:ec2::254/128"), "cloud metadata"),  # AWS
    (IPv6Network("fd20:ce::254/128"), "cloud metadata"),  # Google Cloud
    (IPv6Network("fc00::/7"), "unique local"),
    (IPv6Network("fe80::/10"), "link-local"),
    (IPv6Network("ff00::/8"), "multicast"),
)
_NAT64 = IPv6Network("64:ff9b::/96")
_LOCAL_NAT64 = IPv6Network("64:ff9b:1::/48")
_IPV4_COMPATIBLE = IPv6Network("::/96")
_GLOBAL_UNICAST = IPv6Network("2000::/3")  # all the unicast space that IANA has given out


def match_forbidden_range(address: IPAddress) -> str | None:
    """The name of the special range that `address` is in, or that it embeds; None for public unicast addresses."""
    if isinstance(address, IPv4Address):
        return next((name for network, name in _FORBIDDEN_IPV4 if address in network), None)
    for network, name in _FORBIDDEN_IPV6:
        if address in network:
            return name
    if address in _NAT64:
        return match_forbidden_range(IPv4Address(address.packed[-4:]))
    return None if address in _GLOBAL_UNICAST else "reserved"


def match_embedded_ipv4(address: IPAddress) -> IPv4Address | None:
    """The IPv4 address to which packets for `address` would be carried, where it is of a form that embeds one.

    Forms: IPv4-mapped and -compatible (RFC 4291), 6to4 (RFC 3056), Teredo (RFC 4380), NAT64 (RFC 6052, RFC 8215).
    """
    if isinstance(address, IPv4Address):
        return None
    if (found := address.ipv4_mapped or address.sixtofour) is not None:
        return found
    if address.teredo is not None:
        return address.teredo[1]
    compatible = address in _IPV4_COMPATIBLE and int(address) > 1  # neither :: nor ::1
    return IPv4Address(address.packed[-4:]) if compatible or address in _NAT64 or address in _LOCAL_NAT64 else None
