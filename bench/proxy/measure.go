package main

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// figures are those of a case, by the name of the path.
type figures map[string]*figure

// figure is what was measured of one path, round by round. What was not measured is empty.
type figure struct {
	Missing string `json:",omitempty"` // why there is nothing, if there is no such proxy
	Broken  string `json:",omitempty"` // why there is no more: the proxy did not start, carry a call, or survive
	// CPU is microseconds of the proxy's for a request; Rate requests a second; P50 and P99 microseconds; PSS in MB.
	CPU, Rate, P50, P99, PSS []float64 `json:",omitempty"`
	Failed                   int
	Error                    string `json:",omitempty"` // of the first that failed
	// Idle are the looks at a proxy with open streams, of all rounds.
	Idle []idleStage `json:",omitempty"`
	// Limit is what became of streams above the backend's limit.
	Limit []limitResult `json:",omitempty"`
}

type idleStage struct {
	Streams     int
	GrownKB     float64 // since before the first stream
	Descriptors int
}

type limitResult struct {
	Wanted, Live       int
	BackendConnections int
	Call               string // what became of one more unary call
	Answered           bool
}

func (f *figure) fail(o outcome) {
	f.Failed += o.Failed
	if f.Error == "" {
		f.Error = o.Error
	}
}

// track is a path of the case, running.
type track struct {
	path      path
	figure    *figure
	proxy     *process // nil: none
	at        place
	generator *process
}

// measure runs all rounds of a case.
func (l *lab) measure(c benchCase, paths []path) (figures, error) {
	all := figures{}
	var tracks []*track
	for _, p := range paths {
		t := &track{path: p, figure: &figure{Missing: p.missing}}
		all[p.name] = t.figure
		if c.load.TLS && !p.tls && p.missing == "" {
			t.figure.Missing = noTLS
		}
		if t.figure.Missing == "" {
			tracks = append(tracks, t)
		}
	}
	if c.load.Kind == "idle" || c.load.Kind == "limit" {
		return all, l.apart(c, tracks)
	}
	return all, l.interleaved(c, tracks)
}

// interleaved runs all proxies, and gives each its part of every round.
func (l *lab) interleaved(c benchCase, tracks []*track) error {
	ld := c.load
	start := l.backend
	run := func(t *track, n int) (outcome, error) { return t.generator.ask("run %d", n) }
	if ld.Generator == "h2load" {
		h, err := l.h2load(ld)
		if err != nil {
			return err
		}
		start = l.nghttpd
		run = func(t *track, n int) (outcome, error) { return h.run(t.at.Listen, n) }
	}
	backend, address, err := start(ld)
	if err != nil {
		return err
	}
	defer l.end(backend)
	for _, t := range tracks {
		defer l.close1(t)
		err := l.open1(t, ld, address)
		if err == nil {
			err = t.tryCall()
		}
		if err == nil {
			_, err = run(t, max(ld.Requests/10, ld.Connections*ld.Streams)) // warm
		}
		if err := t.broken(err); err != nil {
			return err
		}
	}
	yardstick, err := l.launch("yardstick", proxyCore, true, []string{l.program, "generator"})
	if err != nil {
		return err
	}
	defer l.end(yardstick)
	for round := range ld.Rounds {
		if err := l.measurePace(yardstick); err != nil {
			return err
		}
		for _, t := range tracks {
			if t.figure.Broken != "" {
				continue
			}
			if err := t.broken(t.measure(ld, run)); err != nil {
				return err
			}
		}
		fmt.Fprintf(os.Stderr, "\tround %d of %d\n", round+1, ld.Rounds)
	}
	for _, t := range tracks {
		if l.profiles != "" && t.path.name == ourName && t.figure.Broken == "" {
			if err := t.profile(filepath.Join(l.profiles, c.name+".pprof"), func() error { _, err := run(t, ld.Requests); return err }); err != nil {
				fmt.Fprintln(os.Stderr, err) // the figures are good all the same
			}
		}
	}
	return nil
}

// profile writes a CPU profile of the proxy, while it carries more of the load.
func (t *track) profile(file string, load func() error) error {
	answered := make(chan error, 1)
	go func() {
		answered <- func() error {
			answer, err := http.Get("http://" + t.at.Admin + "/debug/pprof/profile?seconds=5")
			if err != nil {
				return err
			}
			defer answer.Body.Close()
			b, err := io.ReadAll(answer.Body)
			if err == nil && answer.StatusCode != http.StatusOK {
				err = errors.New(answer.Status)
			}
			if err != nil {
				return fmt.Errorf("profile from %s: %w", answer.Request.URL, err)
			}
			return os.WriteFile(file, b, 0o644)
		}()
	}()
	for {
		select {
		case err := <-answered:
			return err
		default:
			if err := load(); err != nil {
				return errors.Join(err, <-answered)
			}
		}
	}
}

// measure is one round of one path.
func (t *track) measure(ld load, run func(*track, int) (outcome, error)) error {
	var before, after time.Duration
	var err error
	if t.proxy != nil {
		if before, err = t.proxy.cpu(); err != nil {
			return err
		}
	}
	o, err := run(t, ld.Requests)
	if err != nil {
		return err
	}
	t.figure.fail(o)
	if o.Done == 0 {
		return fmt.Errorf("nothing succeeded: %s", o.Error)
	}
	done := float64(o.Done)
	if t.proxy != nil {
		if after, err = t.proxy.cpu(); err != nil {
			return err
		}
		pss, err := t.proxy.pss()
		if err != nil {
			return err
		}
		t.figure.CPU = append(t.figure.CPU, float64((after-before).Nanoseconds())/1e3/done)
		t.figure.PSS = append(t.figure.PSS, pss/1024)
	}
	t.figure.Rate = append(t.figure.Rate, done/o.Seconds)
	if o.P50 > 0 {
		t.figure.P50 = append(t.figure.P50, o.P50)
		t.figure.P99 = append(t.figure.P99, o.P99)
	}
	return nil
}

func (l *lab) measurePace(yardstick *process) error {
	const times = 20_000
	before, err := yardstick.cpu()
	if err != nil {
		return err
	}
	o, err := yardstick.ask("pace %d", times)
	if err != nil {
		return err
	}
	if o.Failed > 0 {
		return yardstick.failed(errors.New(o.Error))
	}
	after, err := yardstick.cpu()
	if err != nil {
		return err
	}
	l.pace = append(l.pace, float64((after-before).Nanoseconds())/1e3/times)
	return nil
}

// tryCall makes sure that a gRPC call comes through whole: otherwise there is nothing to measure. A proxy may listen before it knows its backend.
func (t *track) tryCall() error {
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		o, err := t.generator.ask("call 1")
		if err == nil && o.Failed > 0 {
			err = errors.New(o.Error)
		}
		if err == nil || time.Now().After(deadline) {
			return err
		}
	}
}

// broken notes why a proxy cannot be measured further; the others still are. Without a proxy it returns the error: then the bench itself is broken.
func (t *track) broken(err error) error {
	if err == nil {
		return nil
	}
	if t.proxy == nil {
		return fmt.Errorf("%s: %w", t.path.name, err)
	}
	fmt.Fprintf(os.Stderr, "%s: %v\n", t.path.name, t.proxy.failed(err))
	t.figure.Broken, _, _ = strings.Cut(err.Error(), "\n")
	return nil
}

// backend starts the one of grpc-go.
func (l *lab) backend(ld load) (*process, string, error) {
	address, err := freeAddress()
	if err != nil {
		return nil, "", err
	}
	p, err := l.start("backend", loadCore, append([]string{l.program, "backend", "-target", address}, ld.flags()...)...)
	if err != nil {
		return nil, "", err
	}
	if err := p.ready(address); err != nil {
		return nil, "", p.failed(err)
	}
	return p, address, nil
}

// flags are the load's, for the processes of this program.
func (l load) flags() []string {
	return []string{
		"-connections", strconv.Itoa(l.Connections), "-streams", strconv.Itoa(l.Streams), "-size", strconv.Itoa(l.Size), "-kind", l.Kind,
		"-backend-streams", strconv.Itoa(l.BackendStreams), "-seed", strconv.FormatUint(l.Seed, 10), "-tls=" + strconv.FormatBool(l.TLS),
	}
}

// open1 starts the path's proxy and generator.
func (l *lab) open1(t *track, ld load, backend string) (err error) {
	overTLS := ld.TLS && t.path.command != nil // what is direct goes to a backend without
	if t.proxy, t.at, err = l.open(t.path, backend, overTLS); err != nil {
		return err
	}
	ld.TLS = overTLS
	argv := append([]string{l.program, "generator", "-target", t.at.Listen}, ld.flags()...)
	t.generator, err = l.launch("generator", loadCore, true, argv)
	return err
}

func (l *lab) close1(t *track) {
	for _, p := range []*process{t.generator, t.proxy} {
		if p != nil {
			l.end(p)
		}
	}
}

// apart runs one path after the other, each with a backend of its own: what is looked at is left behind by the streams before.
func (l *lab) apart(c benchCase, tracks []*track) error {
	look := idle
	if c.load.Kind == "limit" {
		look = limit
	}
	for round := range c.load.Rounds {
		for _, t := range tracks {
			if t.figure.Broken != "" {
				continue
			}
			if err := l.lookAt(c.load, t, look); err != nil {
				return err
			}
		}
		fmt.Fprintf(os.Stderr, "\tround %d of %d\n", round+1, c.load.Rounds)
	}
	return nil
}

func (l *lab) lookAt(ld load, t *track, look func(load, *track, *process, string) error) error {
	backend, address, err := l.backend(ld)
	if err != nil {
		return err
	}
	defer l.end(backend)
	defer l.close1(t)
	if err = l.open1(t, ld, address); err == nil {
		err = look(ld, t, backend, address)
	}
	return t.broken(err)
}

// idle opens streams and looks at the memory of the proxy, or without one at that of the backend.
func idle(ld load, t *track, backend *process, _ string) error {
	watched := t.proxy
	if watched == nil {
		watched = backend
	}
	if err := t.tryCall(); err != nil {
		return err
	}
	before, err := watched.settledPSS()
	if err != nil {
		return err
	}
	for _, stage := range ld.Stages {
		o, err := t.generator.ask("open %d", stage)
		if err != nil {
			return err
		}
		if o.Failed > 0 {
			return fmt.Errorf("%d of %d streams did not open: %s", o.Failed, stage, o.Error)
		}
		now, err := watched.settledPSS()
		if err != nil {
			return err
		}
		descriptors, err := watched.descriptors()
		if err != nil {
			return err
		}
		t.figure.Idle = append(t.figure.Idle, idleStage{Streams: stage, GrownKB: now - before, Descriptors: descriptors})
	}
	return nil
}

// limit asks for more streams than the backend takes on one connection, and then for one more call.
func limit(ld load, t *track, _ *process, address string) error {
	if err := t.tryCall(); err != nil {
		return err
	}
	wanted := ld.Connections * ld.Streams
	o, err := t.generator.ask("open %d", wanted)
	if err != nil {
		return err
	}
	r := limitResult{Wanted: wanted, Live: o.Done}
	if r.BackendConnections, err = connectionsTo(address); err != nil {
		return err
	}
	if o, err = t.generator.ask("call 1"); err != nil {
		return err
	}
	r.Answered = o.Failed == 0
	if r.Call = fmt.Sprintf("ok in %.1f ms", o.Seconds*1e3); !r.Answered {
		r.Call = o.Error
	}
	t.figure.Limit = append(t.figure.Limit, r)
	return nil
}
