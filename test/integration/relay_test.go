package integration

import (
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// relayInFlight bounds what a connection has on the way behind the relay's count, in bytes: what the relay
// holds, and the kernel's send buffer, which is twice what is asked for.
const (
	relayBuffer   = 64 << 10
	relayInFlight = 3 * relayBuffer
)

// relay passes connections on to a server, and counts what the clients are sent: heads and bodies.
type relay struct {
	net.Listener
	server   string
	sent     atomic.Int64 // bytes
	accepted atomic.Int64 // connections
	reset    atomic.Int64 // of these

	mu    sync.Mutex
	open  map[*net.TCPConn]bool
	at    int64 // of sent, when connections are reset; 0 for never
	first func()
}

func startRelay(t *testing.T, server string) *relay {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{Listener: l, server: server, open: map[*net.TCPConn]bool{}}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			r.accepted.Add(1)
			all.Go(func() { r.pass(conn.(*net.TCPConn)) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		r.resetAll()
		all.Wait()
	})
	return r
}

// pace is the pause after each piece of at most relayBuffer bytes: 13 MB/s for a connection.
const pace = 5 * time.Millisecond

// resetAt breaks all connections, once, when so many bytes were sent; before it calls first, if that is set. Until then
// the relay is slow, so that all that an import transfers at a time is on its way.
func (r *relay) resetAt(sent int64, first func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.at, r.first = sent, first
}

func (r *relay) resetAll() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.resetLocked()
}

func (r *relay) resetLocked() {
	for conn := range r.open {
		_ = conn.SetLinger(0) // RST; what the kernel still holds is lost
		conn.Close()
		r.reset.Add(1)
	}
	clear(r.open)
}

// count counts n bytes that are about to be sent, or breaks all connections instead. It says whether to be slow.
func (r *relay) count(n int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if sent := r.sent.Add(int64(n)); r.at == 0 || sent < r.at {
		return r.at > 0
	}
	r.at = 0
	if r.first != nil {
		r.first()
	}
	r.resetLocked()
	return false
}

func (r *relay) pass(client *net.TCPConn) {
	defer client.Close()
	server, err := net.Dial("tcp", r.server)
	if err != nil {
		return
	}
	defer server.Close()
	if err := client.SetWriteBuffer(relayBuffer); err != nil {
		return
	}
	r.mu.Lock()
	r.open[client] = true
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.open, client)
	}()
	go func() {
		_, _ = io.Copy(server, client) // requests
		server.Close()
	}()
	buf := make([]byte, relayBuffer)
	for {
		n, err := server.Read(buf)
		if n > 0 {
			if r.count(n) {
				time.Sleep(pace)
			}
			if _, err := client.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
