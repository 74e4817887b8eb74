package source

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"time"
)

// dialTimeout bounds one TCP connect. A server in a reachable network answers within a round trip;
// ten seconds allow for three lost SYNs (1 + 2 + 4 s, RFC 6298).
const dialTimeout = 10 * time.Second

// testHooks are what tests put in the place of the machine's own.
type testHooks struct {
	resolver *net.Resolver
	// dialing is told each address that is about to be connected to.
	dialing func(netip.AddrPort)
	// leastTime is instead of the constant, and roundTripBytes of what is measured, unless they are 0.
	leastTime      time.Duration
	roundTripBytes int64
}

// newDialer gives a dialer that looks at the address it is about to connect to, after the look-up of
// the name: a check of the name before it could be answered differently the second time.
func newDialer(r reach, hooks testHooks) *net.Dialer {
	return &net.Dialer{
		Timeout:  dialTimeout,
		Resolver: hooks.resolver,
		ControlContext: func(_ context.Context, _, address string, _ syscall.RawConn) error {
			ap, err := netip.ParseAddrPort(address)
			if err != nil {
				return fmt.Errorf("address %q: %w", address, ErrInvalid)
			}
			if err := r.checkAddr(ap.Addr()); err != nil {
				return err
			}
			if hooks.dialing != nil {
				hooks.dialing(ap)
			}
			return nil
		},
	}
}

// checkedProxy gives the proxy of a request, if choose names one. The proxy's own address is checked when
// it is dialled. A host that is not ASCII would reach the proxy in another form than the one that
// checkHost has seen: ①②⑦.⓪.⓪.① as 127.0.0.1.
func checkedProxy(r reach, choose func(*http.Request) (*url.URL, error)) func(*http.Request) (*url.URL, error) {
	if choose == nil || r.anywhere {
		return choose
	}
	return func(req *http.Request) (*url.URL, error) {
		proxy, err := choose(req)
		if proxy != nil && strings.ContainsFunc(req.URL.Hostname(), func(c rune) bool { return c > 0x7f }) {
			return nil, fmt.Errorf("the URL's host must be in its ASCII form (xn--…) to be asked of a proxy: %w", ErrInvalid)
		}
		return proxy, err
	}
}
