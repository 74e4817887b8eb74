package main

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/spf13/pflag"
)

// A node's agent goes where it is allowed to, and by a proxy only when told to, whatever the environment says.
func TestNodeSources(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	for name, tc := range map[string]struct {
		args  []string
		allow []netip.Prefix
		proxy bool
	}{
		"by default": {nil, nil, false},
		"proxy":      {[]string{"--source-proxy-from-environment"}, nil, true},
		"two prefixes": {
			[]string{"--allow-source-addresses", "127.0.0.1/32", "--allow-source-addresses=fe80::/10"},
			[]netip.Prefix{netip.MustParsePrefix("127.0.0.1/32"), netip.MustParsePrefix("fe80::/10")}, false,
		},
	} {
		var f nodeFlags
		flags := pflag.NewFlagSet("", pflag.ContinueOnError)
		f.add(flags)
		if err := flags.Parse(tc.args); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		s := f.sources(nil)
		if !slices.Equal(s.AllowAddresses, tc.allow) || (s.Proxy != nil) != tc.proxy {
			t.Errorf("%s: allows %v, has a proxy: %v", name, s.AllowAddresses, s.Proxy != nil)
		}
	}
}
