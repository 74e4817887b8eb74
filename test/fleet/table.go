package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// figure is a row of the table: what was measured in each run, and what is asked for.
type figure struct {
	what  string
	of    func(result) float64 // NaN where it was not measured
	text  func(float64) string
	limit func(result) float64 // nil: none
	// speed depends on the machine and on who else uses it. Missing it is only said; any other miss fails the command.
	speed bool
}

func constant(limit float64) func(result) float64 { return func(result) float64 { return limit } }

func number(v float64) string  { return fmt.Sprintf("%.4g", v) }
func seconds(v float64) string { return fmt.Sprintf("%.1f s", v) }
func millis(v float64) string  { return fmt.Sprintf("%.0f ms", 1000*v) }
func kib(v float64) string     { return fmt.Sprintf("%.1f KiB", v/(1<<10)) }
func mib(v float64) string     { return fmt.Sprintf("%.0f MiB", v/(1<<20)) }

// figures about one phase.
func figuresOf(name string, of func(result) *phase, more ...figure) []figure {
	in := func(get func(result, *phase) float64) func(result) float64 {
		return func(r result) float64 {
			if p := of(r); p != nil {
				return get(r, p)
			}
			return math.NaN()
		}
	}
	cores := func(cpu func(*phase) time.Duration) func(result) float64 {
		return in(func(_ result, p *phase) float64 { return cpu(p).Seconds() })
	}
	list := append([]figure{
		{what: "status writes of a node, mean", of: in(func(r result, p *phase) float64 {
			return float64(p.sent.Sent[writeStatus]+p.sent.Sent[writeCreate]) / float64(r.nodes)
		}), text: number},
		{what: "Events of a node, mean", of: in(func(r result, p *phase) float64 { return float64(p.sent.Sent[writeEvent]) / float64(r.nodes) }), text: number},
		{what: "agents' writes/s, most in any 10 s", of: in(func(_ result, p *phase) float64 { return busiest(p.sent.Seconds) }), text: number, limit: constant(200)},
		{what: "writes refused (429)", of: in(func(_ result, p *phase) float64 {
			return p.server.sum("apiserver_request_total", func(s string) bool { return mutating("")(s) && label(s, "code") == "429" })
		}), text: number, limit: constant(0)},
	}, more...)
	list = append(list,
		figure{what: "watch events/s", of: in(func(_ result, p *phase) float64 {
			return p.server.sum("apiserver_watch_events_total", ofTarlift) / p.length.Seconds()
		}), text: number},
		figure{what: "mutating requests, p99", of: in(func(_ result, p *phase) float64 {
			return p.server.duration(0.99, mutating(""))
		}), text: millis},
		figure{what: "API server, processor time", of: cores(func(p *phase) time.Duration { return p.apiCPU }), text: seconds},
		figure{what: "etcd, processor time", of: cores(func(p *phase) time.Duration { return p.etcdCPU }), text: seconds},
		figure{what: "controller, processor time", of: cores(func(p *phase) time.Duration { return p.controllerCPU }), text: seconds},
		figure{what: "agents, processor time", of: cores(func(p *phase) time.Duration { return p.agentsCPU }), text: seconds},
		figure{what: "length of the phase", of: in(func(_ result, p *phase) float64 { return p.length.Seconds() }), text: seconds},
	)
	for i := range list {
		list[i].what = name + ": " + list[i].what
	}
	return list
}

func ofTarlift(series string) bool { return label(series, "group") == "tarlift.dev" }

// once is a write a node. One whose place in the window comes while its import still runs writes twice; on a machine that
// runs all agents, these are some.
const once = 1.2

// maxObject is for what is read, listed and sent to watchers as a whole.
const maxObject = 16 << 10

func tookOf(of func(result) *phase) figure {
	return figure{what: "apply to Ready", of: func(r result) float64 {
		if p := of(r); p != nil {
			return p.took.Seconds()
		}
		return math.NaN()
	}, text: seconds, limit: constant(120), speed: true}
}

// archiveWritesOf are how many writes of an ImageArchive's status were made beyond what is allowed, of that archive where
// they were most.
func archiveWritesOf(of func(result) *phase) figure {
	return figure{what: "writes of an ImageArchive's status beyond its rate, most", of: func(r result) float64 {
		p := of(r)
		if p == nil {
			return math.NaN()
		}
		most := math.Inf(-1)
		for _, writes := range p.archives {
			most = max(most, float64(excess(writes, r.nodes)))
		}
		return max(most, 0)
	}, text: number, limit: constant(0)}
}

// excess is by how many writes more were made than a write each max(10 s, nodes/100 s), and one for each time that it
// became, or was no longer, ready or stalled. The first tells the generation.
func excess(writes []archiveWrite, nodes int) int {
	if len(writes) == 0 {
		return 0
	}
	changes := 1
	for i := 1; i < len(writes); i++ {
		if writes[i].ready != writes[i-1].ready || writes[i].stalled != writes[i-1].stalled {
			changes++
		}
	}
	interval := max(10*time.Second, time.Duration(nodes)*time.Second/100)
	span := writes[len(writes)-1].when.Sub(writes[0].when)
	return len(writes) - changes - int(span/interval)
}

func figures() []figure {
	start := func(r result) *phase { return &r.start }
	all := func(r result) *phase { return &r.all }
	one := func(r result) *phase { return &r.one }
	rollout := func(r result) *phase { return r.rollout }
	perArchive := func(kind string) func(result) float64 {
		return func(r result) float64 { return float64(r.all.sent.Most[kind]) / float64(r.archives) }
	}
	list := figuresOf("start", start)
	list = append(list, figuresOf("all archives", all,
		figure{what: "writes a node and archive, Events included, most", of: perArchive(writeAny), text: number, limit: constant(3)},
		archiveWritesOf(all), tookOf(all))...)
	list = append(list, figuresOf("one archive", one,
		figure{what: "status writes of a node for an instant import, mean", of: func(r result) float64 {
			return float64(r.one.sent.Sent[writeStatus]) / float64(r.nodes)
		}, text: number, limit: constant(once)},
		archiveWritesOf(one), tookOf(one))...)
	list = append(list, figuresOf("rollout", rollout,
		figure{what: "importing at a time, most", of: func(r result) float64 { return r.concurrent }, text: number, limit: func(r result) float64 { return r.maxConcurrent }},
		figure{what: "imports a node", of: func(r result) float64 { return r.imports / float64(r.nodes) }, text: number, limit: constant(1)},
		archiveWritesOf(rollout),
		figure{what: "apply to Ready", of: func(r result) float64 {
			if r.rollout == nil {
				return math.NaN()
			}
			return r.rollout.took.Seconds()
		}, text: seconds})...)
	perMinute := func(n float64, p phase) float64 { return n / p.length.Minutes() }
	return append(list,
		figure{what: "idle: agents' writes a minute", of: func(r result) float64 {
			return perMinute(float64(r.idle.sent.Sent[writeStatus]+r.idle.sent.Sent[writeEvent]+r.idle.sent.Sent[writeCreate]+r.idle.sent.Sent[writeOther]), r.idle)
		}, text: number, limit: constant(0)},
		figure{what: "idle: all writes a minute, Leases excepted", of: func(r result) float64 {
			return perMinute(r.idle.server.sum("apiserver_request_total", func(s string) bool { return mutating("")(s) && label(s, "resource") != "leases" }), r.idle)
		}, text: number, limit: constant(0)},
		figure{what: "idle: API server, share of a core", of: func(r result) float64 { return r.idle.apiCPU.Seconds() / r.idle.length.Seconds() }, text: number},
		figure{what: "idle: controller, share of a core", of: func(r result) float64 { return r.idle.controllerCPU.Seconds() / r.idle.length.Seconds() }, text: number},
		figure{what: "idle: an agent, share of a core", of: func(r result) float64 {
			return r.idle.agentsCPU.Seconds() / r.idle.length.Seconds() / float64(r.nodes)
		}, text: func(v float64) string { return fmt.Sprintf("%.3f %%", 100*v) }},
		figure{what: "NodeImageState without managedFields, largest", of: func(r result) float64 { return r.stateSize }, text: kib, limit: constant(maxObject)},
		figure{what: "ImageArchive, largest", of: func(r result) float64 { return r.archiveSize }, text: kib, limit: constant(maxObject)},
		figure{what: "controller, largest resident set", of: func(r result) float64 { return float64(r.last().controllerMemory) }, text: mib, limit: constant(256 << 20)},
		figure{what: "controller, anonymous memory at the end", of: func(r result) float64 { return float64(r.last().controllerAnon) }, text: mib},
		figure{what: "API server, largest resident set", of: func(r result) float64 { return float64(r.last().apiMemory) }, text: mib},
		figure{what: "etcd, largest resident set", of: func(r result) float64 { return float64(r.last().etcdMemory) }, text: mib},
		figure{what: "a simulated agent, its share of its process", of: func(r result) float64 { return float64(r.last().agentsMemory) / float64(r.nodes) }, text: kib},
	)
}

// printTable prints a Markdown table: a row a figure, a column a run.
func printTable(w io.Writer, results []result) error {
	t := tabwriter.NewWriter(w, 0, 0, 1, ' ', 0)
	head, rule := "| \t| at most", "|---\t|---"
	for _, r := range results {
		head += fmt.Sprintf("\t| %d nodes, %d archives", r.nodes, r.archives)
		rule += "\t|---"
	}
	fmt.Fprintf(t, "%s\t|\n%s\t|\n", head, rule)
	for _, f := range figures() {
		if !slices.ContainsFunc(results, func(r result) bool { return !math.IsNaN(f.of(r)) }) {
			continue
		}
		row := "| " + f.what + "\t| "
		if f.limit != nil {
			limits := map[string]bool{}
			var texts []string
			for _, r := range results {
				if text := f.text(f.limit(r)); !limits[text] {
					limits[text] = true
					texts = append(texts, text)
				}
			}
			row += strings.Join(texts, ", ")
		}
		for _, r := range results {
			row += "\t| " + f.cell(r)
		}
		fmt.Fprintln(t, row+"\t|")
	}
	return t.Flush()
}

func (f figure) cell(r result) string {
	v := f.of(r)
	switch {
	case math.IsNaN(v):
		return "–"
	case f.missed(r):
		return f.text(v) + " **missed**"
	}
	return f.text(v)
}

func (f figure) missed(r result) bool { return f.limit != nil && f.of(r) > f.limit(r) }

// judge is an error when a run missed what does not depend on the machine's speed.
func judge(results []result) error {
	var missed []string
	for _, r := range results {
		for _, f := range figures() {
			if f.missed(r) && !f.speed {
				missed = append(missed, fmt.Sprintf("%d nodes: %s %s, at most %s", r.nodes, f.what, f.text(f.of(r)), f.text(f.limit(r))))
			}
		}
	}
	if missed != nil {
		return fmt.Errorf("missed: %s", strings.Join(missed, "; "))
	}
	return nil
}
