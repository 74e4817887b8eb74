package source

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
)

// metadataAddrs are services that give a cloud machine its credentials and that lie outside of the
// link-local networks.
var metadataAddrs = []netip.Prefix{
	netip.MustParsePrefix("fd00:ec2::/32"),          // AWS: the instance's at ::254, the pods' (EKS Pod Identity) at ::23
	netip.MustParsePrefix("fd20:ce::254/128"),       // Google
	netip.MustParsePrefix("100.100.100.200/32"),     // Alibaba
	netip.MustParsePrefix("168.63.129.16/32"),       // Azure
	netip.MustParsePrefix("192.0.0.192/32"),         // Oracle
	netip.MustParsePrefix("fd00:c1::a9fe:a9fe/128"), // Oracle
	netip.MustParsePrefix("fd00:42::42/128"),        // Scaleway
	netip.MustParsePrefix("fd00:a9fe:a9fe::1/128"),  // Linode
}

// thisNetwork is "this host on this network" (RFC 1122, section 3.2.1.3). Linux connects to 0.0.0.0 as to
// loopback.
var thisNetwork = netip.MustParsePrefix("0.0.0.0/8")

var broadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// checkAddr refuses every address at which no archive can lie but something else may listen that trusts whoever reaches
// it: a service of the node itself, or the one that gives a cloud machine its credentials. Whoever names a URL must not be
// able to make the agent, which runs in the node's network, ask there. Private networks are not refused: that is where
// air-gapped servers are.
func (o HTTPOptions) checkAddr(addr netip.Addr) error {
	if o.Anywhere {
		return nil
	}
	addr = addr.Unmap().WithZone("")
	if o.allows(addr) {
		return nil
	}
	if kind := kindOfAddr(addr); kind != "" {
		return refused(addr.String(), kind)
	}
	for _, inner := range embedded(addr) {
		if kind := kindOfAddr(inner); kind != "" && !o.allows(inner) {
			return refused(addr.String(), fmt.Sprintf("another form of %s, %s", inner, kind))
		}
	}
	return nil
}

func (o HTTPOptions) allows(addr netip.Addr) bool {
	return slices.ContainsFunc(o.AllowAddresses, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// refused is the one text for what an operator may allow.
func refused(what, kind string) error {
	return fmt.Errorf("%s is %s, and no address of a source unless --allow-source-addresses"+
		" (node.allowSourceAddresses in the chart) covers it: %w", what, kind, ErrInvalid)
}

// kindOfAddr says why an address is refused; empty if it is not.
func kindOfAddr(addr netip.Addr) string {
	switch {
	case addr.IsLoopback():
		return "a loopback address"
	case addr.IsUnspecified(), thisNetwork.Contains(addr):
		return "an unspecified address"
	case addr.IsMulticast(), addr == broadcast:
		return "a multicast or broadcast address"
	case slices.ContainsFunc(metadataAddrs, func(p netip.Prefix) bool { return p.Contains(addr) }):
		return "a cloud's metadata service"
	case addr.IsLinkLocalUnicast():
		return "a link-local address, as clouds' metadata services have"
	}
	return ""
}

var (
	compatible = netip.MustParsePrefix("::/96")           // RFC 4291, section 2.5.5.1
	translated = netip.MustParsePrefix("::ffff:0:0:0/96") // RFC 2765, section 2.1
	nat64      = netip.MustParsePrefix("64:ff9b::/96")    // RFC 6052
	nat64Local = netip.MustParsePrefix("64:ff9b:1::/48")  // RFC 8215
	sixToFour  = netip.MustParsePrefix("2002::/16")       // RFC 3056
	teredo     = netip.MustParsePrefix("2001::/32")       // RFC 4380
)

// embedded gives the IPv4 addresses that a gateway would make of an IPv6 address.
func embedded(addr netip.Addr) []netip.Addr {
	if !addr.Is6() {
		return nil
	}
	raw := addr.As16()
	last := netip.AddrFrom4([4]byte(raw[12:]))
	switch {
	case compatible.Contains(addr), translated.Contains(addr), nat64.Contains(addr):
		return []netip.Addr{last}
	case nat64Local.Contains(addr):
		// Where the four bytes are depends on the length of the network's own prefix: 96 or 48 (RFC 6052,
		// section 2.2). Zeros are the filling of the other form.
		both := []netip.Addr{last, netip.AddrFrom4([4]byte{raw[6], raw[7], raw[9], raw[10]})}
		return slices.DeleteFunc(both, netip.Addr.IsUnspecified)
	case sixToFour.Contains(addr):
		return []netip.Addr{netip.AddrFrom4([4]byte(raw[2:6]))}
	case teredo.Contains(addr):
		client := ^binary.BigEndian.Uint32(raw[12:])
		return []netip.Addr{netip.AddrFrom4([4]byte(binary.BigEndian.AppendUint32(nil, client)))}
	case binary.BigEndian.Uint32(raw[8:])&^0x0200_0000 == 0x5efe: // ISATAP (RFC 5214, section 6.1)
		return []netip.Addr{last}
	}
	return nil
}

// checkHost refuses a URL whose host is by itself such an address, so that nobody is asked at all. What a
// name resolves to is checked when it is dialled. Of a request through a proxy, which does its own
// look-ups, this is all that can be checked.
func (o HTTPOptions) checkHost(u *url.URL) error {
	if o.Anywhere {
		return nil
	}
	host := u.Hostname()
	if addr, err := netip.ParseAddr(host); err == nil {
		return o.checkAddr(addr)
	}
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	switch {
	case endsInNumber(name):
		// 0x7f.1, 2130706433, 0177.0.0.1: there are resolvers and proxies that take them for addresses.
		return fmt.Errorf("%q is no IPv4 address as four decimal numbers, and no name: %w", host, ErrInvalid)
	case name == "localhost", strings.HasSuffix(name, ".localhost"): // RFC 6761, section 6.3
		if o.checkAddr(netip.IPv6Loopback()) != nil && o.checkAddr(netip.AddrFrom4([4]byte{127, 0, 0, 1})) != nil {
			return refused(fmt.Sprintf("%q", host), "a name of loopback addresses")
		}
	}
	return nil
}

// endsInNumber tells whether a host's last label is a decimal or hexadecimal number, which no top-level
// domain is: https://url.spec.whatwg.org/#ends-in-a-number-checker.
func endsInNumber(host string) bool {
	label := host[strings.LastIndexByte(host, '.')+1:]
	digits := "0123456789"
	if hex, ok := strings.CutPrefix(label, "0x"); ok {
		label, digits = hex, "0123456789abcdef"
		if hex == "" {
			return true // 0x is read as 0
		}
	}
	return label != "" && strings.Trim(label, digits) == ""
}
