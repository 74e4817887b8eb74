package source

import (
	"net"
	"net/netip"
	"time"
)

// Observed are o with another resolver, and with a function that is told each address that is about to be connected to.
func Observed(o HTTPOptions, resolver *net.Resolver, dialing func(netip.AddrPort)) HTTPOptions {
	o.hooks = testHooks{resolver: resolver, dialing: dialing}
	return o
}

// WithLeastTime are o with another least time.
func WithLeastTime(o HTTPOptions, d time.Duration) HTTPOptions {
	o.hooks.leastTime = d
	return o
}

// WithroundTripBytes are o with what a round trip is worth, whatever is measured.
func WithroundTripBytes(o HTTPOptions, n int64) HTTPOptions {
	o.hooks.roundTripBytes = n
	return o
}
