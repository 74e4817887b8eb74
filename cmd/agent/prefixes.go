package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// prefixes is a repeatable flag of address prefixes.
type prefixes []netip.Prefix

func (p *prefixes) String() string { return strings.Trim(fmt.Sprint([]netip.Prefix(*p)), "[]") }
func (p *prefixes) Type() string   { return "prefix" }
func (p *prefixes) Set(s string) error {
	prefix, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return errors.New("must be an address, a slash and a number of bits, such as 127.0.0.1/32")
	case prefix.Addr().Is4In6():
		return errors.New("must be given as an IPv4 prefix")
	case prefix != prefix.Masked():
		return fmt.Errorf("has bits set after the prefix: use %s, or a longer prefix", prefix.Masked())
	}
	*p = append(*p, prefix)
	return nil
}
