// Proxy measures gRPC proxies side by side: the backend without a proxy, ours, and the others, in interleaved rounds of one run. The first figure is
// the CPU that the proxy uses for a request or message; it is sound on a busy machine, which rates and latencies are not.
//
//	go run ./bench/proxy [-rounds 2] [-requests 2000] [-paths direct,ours,nghttpx] [CASE...]
//
// A case is a folder bench/cases/proxy_* with load.yaml and goal.yaml. Proxies run on core 1, with one worker; generator and backend on core 0.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"sigs.k8s.io/yaml"
)

// benchCase is a folder of bench/cases.
type benchCase struct {
	name string
	load load
	goal goal
}

// load is what the generator does.
type load struct {
	// Kind is unary, pingpong, stream, idle or limit.
	Kind string `json:"kind"`
	// Generator is h2load, whose backend is nghttpd, or grpc-go, on both sides.
	Generator string `json:"generator"`
	// TLS is between generator and proxy.
	TLS bool `json:"tls"`
	// Connections of the generator. An idle case opens as many as its streams need.
	Connections int `json:"connections"`
	// Streams at a time on each connection.
	Streams int `json:"streams"`
	// Size of a message in bytes.
	Size int `json:"size"`
	// Requests of a round: calls, round trips or messages.
	Requests int `json:"requests"`
	Rounds   int `json:"rounds"`
	// Stages are the numbers of open streams at which an idle case looks.
	Stages []int `json:"stages"`
	// BackendStreams is the backend's MAX_CONCURRENT_STREAMS; 0 is no limit.
	BackendStreams int `json:"backendStreams"`
	// Seed is that of the bytes of messages.
	Seed uint64 `json:"seed"`
}

// goal is what ours is measured against; zero fields are not.
type goal struct {
	// Measure is cpu (microseconds for a request), kbPerStream or live (streams).
	Measure string  `json:"measure"`
	AtMost  float64 `json:"atMost"`
	AtLeast float64 `json:"atLeast"`
	// Answers: a new unary call has to be answered.
	Answers bool `json:"answers"`
	// Against is the path that ours is compared with in the same run; ours has to be below Times its figure.
	Against string  `json:"against"`
	Times   float64 `json:"times"`
	// Worse is the share by which ours/Against may grow since an earlier run.
	Worse float64 `json:"worse"`
}

type options struct {
	rounds, requests int
	paths, also      string
	ours, out        string
	earlier, profile string
}

func main() {
	if len(os.Args) > 1 && (os.Args[1] == "backend" || os.Args[1] == "generator") { // the processes that this one starts
		if err := play(os.Args[1], os.Args[2:]); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", os.Args[1], err)
			os.Exit(1)
		}
		return
	}
	// What this process starts ends with the thread that started it.
	runtime.LockOSThread()
	var o options
	flag.IntVar(&o.rounds, "rounds", 0, "rounds of each case, instead of what its load.yaml says")
	flag.IntVar(&o.requests, "requests", 0, "requests of a round, instead of what load.yaml says; an idle case opens at most so many streams")
	flag.StringVar(&o.paths, "paths", "", "only these, separated by commas: direct, ours, nghttpx, haproxy, nginx, rawcodec")
	flag.StringVar(&o.also, "also", "", "one more proxy: NAME=COMMAND, with {listen} and {backend} (and {cert} and {key}, if it can do TLS) in its arguments")
	flag.StringVar(&o.ours, "ours", "", "the levada to measure, instead of one built from this tree")
	flag.StringVar(&o.out, "out", "", "file to write the figures to, as JSON")
	flag.StringVar(&o.earlier, "against", "", "file of an earlier run (-out): says what has become worse")
	flag.StringVar(&o.profile, "profile", "", "directory for a CPU profile of ours in each case that measures CPU, of 5 s after its rounds")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "bench/proxy:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options, names []string) (err error) {
	cases, err := readCases(names, o)
	if err != nil {
		return err
	}
	var earlier record
	if o.earlier != "" {
		b, err := os.ReadFile(o.earlier)
		if err != nil {
			return err
		}
		if err := json.Unmarshal(b, &earlier); err != nil {
			return fmt.Errorf("%s: %w", o.earlier, err)
		}
	}
	l, err := openLab(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	if l.profiles = o.profile; l.profiles != "" {
		if err := os.MkdirAll(l.profiles, 0o755); err != nil {
			return err
		}
	}
	paths, err := l.paths(o)
	if err != nil {
		return err
	}
	now := record{Cases: map[string]figures{}}
	for i, c := range cases {
		fmt.Fprintf(os.Stderr, "%s\n", c.name)
		f, failed := l.measure(c, paths)
		if ctx.Err() != nil {
			failed = errors.New("stopped by a signal")
		}
		if failed != nil { // what was measured until then is not lost
			err = fmt.Errorf("%s: %w", c.name, failed)
			cases = cases[:i]
			break
		}
		now.Cases[c.name] = f
		caseTable(os.Stdout, c, paths, f)
	}
	now.Pace = l.pace
	summary(os.Stdout, cases, paths, now, earlier)
	if o.out != "" {
		err = errors.Join(err, now.write(o.out))
	}
	return err
}

func (r record) write(path string) error {
	b, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(b, '\n'), 0o644)
}

func readCases(names []string, o options) ([]benchCase, error) {
	if len(names) == 0 {
		folders, _ := filepath.Glob("bench/cases/proxy_*")
		for _, f := range folders {
			names = append(names, filepath.Base(f))
		}
	}
	if len(names) == 0 {
		return nil, errors.New("there are no cases: run it from the root of the repository")
	}
	var cases []benchCase
	for _, name := range names {
		if !strings.HasPrefix(name, "proxy_") {
			name = "proxy_" + name
		}
		c := benchCase{name: name}
		for file, into := range map[string]any{"load.yaml": &c.load, "goal.yaml": &c.goal} {
			path := filepath.Join("bench/cases", name, file)
			b, err := os.ReadFile(path)
			if err != nil {
				return nil, err
			}
			if err := yaml.UnmarshalStrict(b, into); err != nil {
				return nil, fmt.Errorf("%s: %w", path, err)
			}
		}
		if err := c.adjust(o); err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		cases = append(cases, c)
	}
	return cases, nil
}

// adjust makes the case shorter or longer as the flags ask, and says what cannot be measured.
func (c *benchCase) adjust(o options) error {
	l := &c.load
	if o.rounds > 0 {
		l.Rounds = o.rounds
	}
	switch {
	case l.Rounds < 1 || l.Streams < 1 || l.Size < 1:
		return errors.New("load.yaml: rounds, streams and size must be at least 1")
	case l.Generator != "grpc-go" && (l.Generator != "h2load" || l.Kind != "unary"):
		return fmt.Errorf("load.yaml: generator %q cannot make the load %q: grpc-go makes all kinds, h2load unary calls", l.Generator, l.Kind)
	case !slices.Contains([]string{"cpu", "kbPerStream", "live"}, c.goal.Measure):
		return fmt.Errorf("goal.yaml: measure %q is none of cpu, kbPerStream, live", c.goal.Measure)
	}
	switch l.Kind {
	case "unary", "pingpong", "stream", "limit":
		if l.Connections < 1 {
			return errors.New("load.yaml: connections must be at least 1")
		}
		if o.requests > 0 {
			l.Requests = o.requests
		}
		if atOnce := l.Connections * l.Streams; l.Kind != "limit" && l.Requests < atOnce {
			return fmt.Errorf("%d requests are too few for %d at a time", l.Requests, atOnce)
		}
	case "idle":
		if o.requests > 0 {
			l.Stages = slices.DeleteFunc(l.Stages, func(n int) bool { return n > o.requests })
		}
		if len(l.Stages) == 0 || !slices.IsSorted(l.Stages) {
			return errors.New("load.yaml: an idle case needs stages, the smallest first (and -requests leaves those that are not above it)")
		}
	default:
		return fmt.Errorf("load.yaml: kind %q is none of unary, pingpong, stream, idle, limit", l.Kind)
	}
	return nil
}
