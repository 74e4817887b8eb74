package source

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"syscall"
	"time"
)

// dialTimeout bounds one TCP connect. A server in a reachable network answers within a round trip;
// ten seconds allow for three lost SYNs (1 + 2 + 4 s, RFC 6298).
const dialTimeout = 10 * time.Second

// metadataAddrs are services that give a cloud machine its credentials and that lie outside of the
// link-local networks.
var metadataAddrs = []netip.Addr{
	netip.MustParseAddr("fd00:ec2::254"),   // AWS
	netip.MustParseAddr("fd20:ce::254"),    // Google
	netip.MustParseAddr("100.100.100.200"), // Alibaba
	netip.MustParseAddr("168.63.129.16"),   // Azure
	netip.MustParseAddr("192.0.0.192"),     // Oracle
}

// nat64 is the prefix under which IPv4 addresses are reached from IPv6 networks (RFC 6052).
var nat64 = netip.MustParsePrefix("64:ff9b::/96")

// checkAddr refuses addresses at which no archive can lie but credentials may. Whoever names a URL
// must not be able to make the agent, which runs in the node's network, ask for the node's identity.
// Loopback and private networks are allowed: that is where air-gapped servers are.
func checkAddr(addr netip.Addr) error {
	addr = addr.Unmap().WithZone("")
	if nat64.Contains(addr) {
		raw := addr.As16()
		addr = netip.AddrFrom4([4]byte(raw[12:]))
	}
	kind := ""
	switch {
	case addr.IsUnspecified():
		kind = "the unspecified address"
	case addr.IsMulticast():
		kind = "a multicast address"
	case addr.IsLinkLocalUnicast():
		kind = "a link-local address"
	case slices.Contains(metadataAddrs, addr):
		kind = "a cloud metadata service"
	default:
		return nil
	}
	return fmt.Errorf("%s is %s: %w", addr, kind, ErrInvalid)
}

// checkHost refuses a URL whose host is such an address by itself. Names are checked when they are
// dialled; this also covers requests that go through a proxy, which does its own dialling.
func checkHost(u *url.URL) error {
	if addr, err := netip.ParseAddr(u.Hostname()); err == nil {
		return checkAddr(addr)
	}
	return nil
}

// newDialer gives a dialer that looks at the address it is about to connect to, after the look-up of
// the name: a check of the name before it could be answered differently the second time.
func newDialer() *net.Dialer {
	return &net.Dialer{
		Timeout: dialTimeout,
		ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
			ap, err := netip.ParseAddrPort(address)
			if err != nil {
				return fmt.Errorf("address %q: %w", address, ErrInvalid)
			}
			return checkAddr(ap.Addr())
		},
	}
}
