package faults

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/tarlift/tarlift/internal/importer"
	"github.com/tarlift/tarlift/test/cluster"
)

// slow serves an archive, and sends no more than some bytes of it until it is released.
type slow struct {
	*httptest.Server
	sent    atomic.Int64
	reached chan struct{}
	release chan struct{}
}

func serveSlowly(t *testing.T, path string, at int64) *slow {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	s := &slow{reached: make(chan struct{}), release: make(chan struct{})}
	reached := sync.OnceFunc(func() { close(s.reached) })
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", `"1"`)
		http.ServeContent(&slowWriter{w, func(n int) {
			if s.sent.Add(int64(n)) < at {
				return
			}
			reached()
			select {
			case <-s.release:
			case <-r.Context().Done():
			}
		}}, r, "", time.Time{}, bytes.NewReader(data))
	}))
	t.Cleanup(s.Close)
	return s
}

type slowWriter struct {
	http.ResponseWriter
	before func(n int)
}

func (w *slowWriter) Write(p []byte) (int, error) {
	w.before(len(p))
	return w.ResponseWriter.Write(p)
}

// Whoever starts while somebody imports leaves that alone, however slow it is. When it has been killed, it is cleared
// up: nobody is left alone by mistake.
func TestLivingImportIsLeftAlone(t *testing.T) {
	former := application(1)
	for name, client := range map[string]func(t *testing.T, archive string) program{
		"agent import": agentImport,
		"node's agent": func(t *testing.T, archive string) program {
			return helpSpec{Archive: archive, Owner: importer.Owner{Name: "application", UID: "5d1b", SpecHash: "1"}}.program(t)
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newScenario(t, name+" alive while others start", newRig(t, cluster.ContainerdOptions{}), application(2), &former)
			s.control = "the same when it has been killed: cleared up"
			dice := dice(t)
			for k := range pick(4, 20) {
				s.restore(t)
				server := serveSlowly(t, s.material.path, 100_000+dice.Int64N(1_200_000))
				p := start(t, client(t, server.URL)(s.ContainerdAddress))
				select {
				case <-server.reached:
				case <-p.ended:
					t.Fatalf("it ended before: %s%s", p.out.String(), p.err.String())
				}
				if kill := k%2 == 1; kill {
					s.kills++
					p.kill()
					s.aftermath(t, &crash{}, p)
					s.attempt(t, &crash{}, "Recover of nothing wanted", helpSpec{}.program(t), s.before)
				} else {
					s.disturb(t, p, server)
				}
				server.Close()
			}
		})
	}
}

// disturb starts others while an import is held up, and lets it go on then.
func (s *scenario) disturb(t *testing.T, p *process, server *slow) {
	t.Helper()
	had := s.state(t)
	s.must(t, agentImport(t, s.other.path)(s.ContainerdAddress))
	s.must(t, helpSpec{}.program(t)(s.ContainerdAddress))
	has := s.state(t)
	for _, kind := range []string{"leases", "ingests", "content"} {
		for _, line := range had[kind] {
			// What had arrived already when the server stopped becomes content.
			committed := kind == "ingests" && slices.Contains(has["content"], line[strings.LastIndex(line, "/")+1:])
			if !committed && !slices.Contains(has[kind], line) {
				s.blame(t, &s.leftovers, &crash{}, "gone of the %s of one who lives: %s", kind, line)
			}
		}
	}
	select {
	case <-p.ended:
		t.Fatalf("it ended while it was held: %s", p.err.String())
	default:
	}
	close(server.release)
	p.wait(t)
	if p.code() != 0 {
		s.blame(t, &s.failed, &crash{}, "it was disturbed: %s%s", p.out.String(), p.err.String())
	}
	s.examine(t, &crash{}, "after it ended")
	if got := s.state(t); len(differences(s.afterOther, got)) > 0 {
		s.blame(t, &s.leftovers, &crash{}, "after it ended: %q", differences(s.afterOther, got))
	}
}
