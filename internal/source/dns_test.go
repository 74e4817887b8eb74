package source_test

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"testing"
)

// zone says what a name server answers: the addresses of a name at the n-th question for it, from 1.
type zone map[string]func(n int) []string

func always(addrs ...string) func(int) []string { return func(int) []string { return addrs } }

// newResolver gives a resolver that asks a name server which knows zone and nothing else.
func newResolver(t *testing.T, z zone) *net.Resolver {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		z.serve(conn)
	}()
	t.Cleanup(func() { conn.Close(); <-done })
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
}

func (z zone) serve(conn net.PacketConn) {
	asked := map[string]int{}
	query := make([]byte, 1500)
	for {
		n, from, err := conn.ReadFrom(query)
		if err != nil {
			return
		}
		conn.WriteTo(z.answer(query[:n], asked), from) //nolint:errcheck // the resolver asks again
	}
}

const (
	typeA, typeAAAA = 1, 28
	dnsHeader       = 12
)

// answer makes a response of RFC 1035 to a query with one question. Look-ups ask for A and for AAAA at the same time.
func (z zone) answer(query []byte, asked map[string]int) []byte {
	var labels []string
	end := dnsHeader
	for query[end] != 0 {
		labels = append(labels, string(query[end+1:end+1+int(query[end])]))
		end += 1 + int(query[end])
	}
	name, kind := strings.ToLower(strings.Join(labels, ".")), binary.BigEndian.Uint16(query[end+1:])
	question := query[dnsHeader : end+5]

	flags, count, records := uint16(0x8583), uint16(0), []byte(nil) // no such name
	if addrs, known := z[name]; known {
		flags = 0x8580
		asked[name+string(rune(kind))]++
		for _, text := range addrs(asked[name+string(rune(kind))]) {
			addr := netip.MustParseAddr(text)
			if addr.Is4() != (kind == typeA) || addr.Is6() != (kind == typeAAAA) {
				continue
			}
			count++
			records = append(records, 0xc0, dnsHeader) // the question's name
			records = binary.BigEndian.AppendUint16(records, kind)
			records = append(records, 0, 1, 0, 0, 0, 0) // class, no time to live
			records = binary.BigEndian.AppendUint16(records, uint16(len(addr.AsSlice())))
			records = append(records, addr.AsSlice()...)
		}
	}
	out := append([]byte(nil), query[:2]...)
	for _, v := range []uint16{flags, 1, count, 0, 0} {
		out = binary.BigEndian.AppendUint16(out, v)
	}
	return append(append(out, question...), records...)
}
