package source

import (
	"net"
	"net/netip"
)

// Observed are o with another resolver, and with a function that is told each address that is about to be connected to.
func Observed(o HTTPOptions, resolver *net.Resolver, dialing func(netip.AddrPort)) HTTPOptions {
	o.seams = dialSeams{resolver: resolver, dialing: dialing}
	return o
}
