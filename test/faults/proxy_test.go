package faults

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// message is one that goes through a proxy: a request before containerd has it, or an answer before the client has it.
// A call of one request and one answer is two of them, an ingest many. Between two messages of a client nothing happens
// that containerd could notice, so that these are all the points at which a crash can make a difference.
type message struct {
	n      int // from 1
	method string
	answer bool
}

func (m message) String() string {
	direction := "request"
	if m.answer {
		direction = "answer"
	}
	return fmt.Sprintf("message %d, %s of %s", m.n, direction, m.method)
}

// proxy passes calls on to containerd, of whatever service, and counts their messages.
type proxy struct {
	address string
	server  *grpc.Server
	clients *connections
	conn    *grpc.ClientConn // to containerd

	mu sync.Mutex
	// strike is told of each message, one at a time. When it says true, neither that one nor any later one is passed on.
	strike func(message) bool
	struck bool
	seen   []message
	edit   func(method string, request *frame) // changes requests, one at a time; nil for none
}

// errStruck ends a call that goes on after the strike. Nobody is there to see it.
var errStruck = status.Error(codes.Unavailable, "struck")

// maxMessage is containerd's own bound, in bytes.
const maxMessage = 16 << 20

// socketDir is short: a socket's path has 107 bytes at most.
func socketDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "s")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// listen serves until stop, after which it may be called again.
func (p *proxy) listen(containerd string) error {
	if err := os.Remove(p.address); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: p.address, Net: "unix"})
	if err != nil {
		return err
	}
	l.SetUnlinkOnClose(false) // as containerd when it is killed: who connects is refused
	p.conn, err = grpc.NewClient("unix://"+containerd, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{}), grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)))
	if err != nil {
		return err
	}
	p.server = grpc.NewServer(grpc.ForceServerCodec(rawCodec{}), grpc.UnknownServiceHandler(p.pass),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage))
	p.mu.Lock()
	p.struck = false
	p.mu.Unlock()
	p.clients = &connections{UnixListener: l}
	go func(s *grpc.Server, l net.Listener) { _ = s.Serve(l) }(p.server, p.clients) // ends with stop
	return nil
}

// connections are those of clients.
type connections struct {
	*net.UnixListener
	mu   sync.Mutex
	open []net.Conn
}

func (c *connections) Accept() (net.Conn, error) {
	conn, err := c.UnixListener.Accept()
	if err != nil {
		return nil, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open = append(c.open, conn)
	return conn, nil
}

// breakAll does what the kernel does to the sockets of a process that is killed.
func (c *connections) breakAll() {
	c.Close()
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.open {
		conn.Close()
	}
}

// stop breaks all connections, those of clients and those to containerd.
func (p *proxy) stop() {
	p.server.Stop()
	p.conn.Close()
}

// messages are all so far.
func (p *proxy) messages() []message {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.seen
}

// may says whether a message may be passed on.
func (p *proxy) may(method string, answer bool) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.struck {
		return false
	}
	m := message{len(p.seen) + 1, method, answer}
	p.seen = append(p.seen, m)
	if p.strike != nil && p.strike(m) {
		p.struck = true
		p.strike = nil
	}
	return !p.struck
}

// change lets a request be edited.
func (p *proxy) change(method string, request *frame) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.edit != nil {
		p.edit(method, request)
	}
}

// alive waits for a strike that is under way, and says whether there was none.
func (p *proxy) alive() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !p.struck
}

// pass is the handler of every call.
func (p *proxy) pass(_ any, in grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(in)
	md, _ := metadata.FromIncomingContext(in.Context())
	ctx, cancel := context.WithCancel(metadata.NewOutgoingContext(in.Context(), md))
	defer cancel()
	out, err := p.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		return err
	}
	go p.requests(method, in, out, cancel)
	return p.answers(method, in, out)
}

func (p *proxy) requests(method string, in grpc.ServerStream, out grpc.ClientStream, cancel func()) {
	for {
		var f frame
		switch err := in.RecvMsg(&f); {
		case errors.Is(err, io.EOF):
			_ = out.CloseSend() // it never fails
			return
		case err != nil || !p.may(method, false):
			cancel()
			return
		}
		p.change(method, &f)
		if out.SendMsg(&f) != nil {
			return // the answer says why
		}
	}
}

func (p *proxy) answers(method string, in grpc.ServerStream, out grpc.ClientStream) error {
	for first := true; ; first = false {
		var f frame
		err := out.RecvMsg(&f)
		if err != nil {
			in.SetTrailer(out.Trailer())
			switch {
			case errors.Is(err, io.EOF):
				return nil
			case !p.alive():
				return errStruck
			}
			return err // a status
		}
		if first {
			if header, err := out.Header(); err == nil {
				_ = in.SendHeader(header) // else SendMsg fails, too
			}
		}
		if !p.may(method, true) {
			return errStruck
		}
		if err := in.SendMsg(&f); err != nil {
			return err
		}
	}
}

// frame is a message as it is on the wire.
type frame struct{ data []byte }

// rawCodec leaves messages as they are.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) ([]byte, error) {
	f, ok := v.(*frame)
	if !ok {
		return nil, fmt.Errorf("a message of type %T", v)
	}
	return f.data, nil
}

func (rawCodec) Unmarshal(data []byte, v any) error {
	f, ok := v.(*frame)
	if !ok {
		return fmt.Errorf("a message of type %T", v)
	}
	f.data = append([]byte(nil), data...)
	return nil
}
