// Pipelines measures what many pipelines that do little cost a NATS JetStream broker: brokers of three with three replicas, or one. Each pipeline has a source, a function and a sink,
// and moves the given number of messages a second. It reports, for each number of pipelines, the CPU of the brokers and of the processes that run the pipelines, memory, and what the
// brokers keep: streams, raft groups, consumers and writes a second.
//
//	go run ./bench/pipelines [-pipelines 0,50,100,200] [-rate 1] [-servers 3] [-seconds 30]
package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// together is how many pipelines one process runs.
const together = 50

func main() {
	if len(os.Args) == 3 && os.Args[1] == "server" {
		if err := serve(os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "server:", err)
			os.Exit(1)
		}
		return
	}
	numbers := flag.String("pipelines", "0,50,100,200", "how many pipelines, ascending multiples of 50")
	rate := flag.Int("rate", 1, "messages a second of each pipeline; 0 for none")
	servers := flag.Int("servers", 3, "brokers, and replicas")
	seconds := flag.Int("seconds", 30, "how long each number is measured")
	flag.Parse()
	if err := run(*numbers, *rate, *servers, time.Duration(*seconds)*time.Second); err != nil {
		fmt.Fprintln(os.Stderr, "pipelines:", err)
		os.Exit(1)
	}
}

// serve is one broker, until it is killed.
func serve(config string) error {
	opt, err := server.ProcessConfigFile(config)
	if err != nil {
		return err
	}
	s, err := server.NewServer(opt)
	if err != nil {
		return err
	}
	s.Start()
	s.WaitForShutdown()
	return nil
}

// lab is the brokers and the processes that run pipelines.
type lab struct {
	dir      string
	rate     int
	replicas int
	url      string
	monitors []string // addresses of the brokers for their figures
	brokers  []*exec.Cmd
	runs     []*exec.Cmd
}

func run(numbers string, rate, servers int, long time.Duration) (err error) {
	l := &lab{rate: rate, replicas: servers}
	if l.dir, err = os.MkdirTemp("", "levada-pipelines"); err != nil {
		return err
	}
	defer os.RemoveAll(l.dir)
	defer l.stop()
	if out, err := exec.Command("go", "build", "-o", l.dir+"/", "./cmd/levada").CombinedOutput(); err != nil {
		return fmt.Errorf("build levada: %w: %s", err, out)
	}
	if err := l.startBrokers(servers); err != nil {
		return err
	}
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(out, "pipelines\tbrokers CPU %\tlevada CPU %\tbrokers MB\tlevada MB\tstreams\traft groups\tconsumers\tblocks/s\tstate writes/s\t")
	for text := range strings.SplitSeq(numbers, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n%together != 0 {
			return fmt.Errorf("-pipelines: %q is not a multiple of %d", text, together)
		}
		if err := l.grow(n); err != nil {
			return err
		}
		if err := l.measure(out, n, long); err != nil {
			return err
		}
		_ = out.Flush()
	}
	return nil
}

func freeAddress() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "127.0.0.1:0"
	}
	defer l.Close()
	return l.Addr().String()
}

// startBrokers starts brokers that sync before each acknowledgement, and waits until they answer.
func (l *lab) startBrokers(n int) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	var clients, routes, between []string
	for range n {
		clients, between, l.monitors = append(clients, freeAddress()), append(between, freeAddress()), append(l.monitors, freeAddress())
		routes = append(routes, "nats-route://"+between[len(between)-1])
	}
	for i := range n {
		config := fmt.Sprintf("server_name: n%d\nlisten: %q\nhttp: %q\njetstream { store_dir: %q\nsync_interval: always\n}\n", i, clients[i], l.monitors[i], filepath.Join(l.dir, "broker", strconv.Itoa(i)))
		if n > 1 {
			config += fmt.Sprintf("cluster { name: bench\nlisten: %q\nroutes: [%s]\n}\n", between[i], strings.Join(routes, ", "))
		}
		file := filepath.Join(l.dir, fmt.Sprintf("broker%d.conf", i))
		if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
			return err
		}
		cmd := exec.Command(self, "server", file)
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			return err
		}
		l.brokers = append(l.brokers, cmd)
		clients[i] = "nats://" + clients[i]
	}
	l.url = strings.Join(clients, ",")
	return l.until("the brokers are ready", func() bool {
		for _, m := range l.monitors {
			if ask(m, "healthz", nil) != nil {
				return false
			}
		}
		return true
	})
}

// until waits for a condition.
func (l *lab) until(what string, met func() bool) error {
	for end := time.Now().Add(3 * time.Minute); !met(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			return fmt.Errorf("waited 3 minutes until %s", what)
		}
	}
	return nil
}

// ask reads a figure of a broker, or of a run.
func ask(address, path string, to any) error {
	res, err := http.Get("http://" + address + "/" + path)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode >= http.StatusBadRequest {
		return errors.New(res.Status)
	}
	if to == nil {
		return nil
	}
	return json.NewDecoder(res.Body).Decode(to)
}

const pipeline = `
apiVersion: numaflow.numaproj.io/v1alpha1
kind: Pipeline
metadata: {name: p%[1]d}
spec:
  vertices:
    - {name: in, source: {generator: {rpu: %[2]d, duration: %[3]s, msgSize: 100}}}
    - {name: cat, udf: {builtin: {name: cat}}}
    - {name: out, sink: {blackhole: {}}}
  edges: [{from: in, to: cat}, {from: cat, to: out}]
---
`

// grow starts processes until n pipelines run.
func (l *lab) grow(n int) error {
	for len(l.runs)*together < n {
		at := len(l.runs)
		var manifest strings.Builder
		each := "1s"
		if l.rate == 0 {
			each = "24h"
		}
		for i := range together {
			fmt.Fprintf(&manifest, pipeline, at*together+i, max(1, l.rate), each)
		}
		file := filepath.Join(l.dir, fmt.Sprintf("run%d.yaml", at))
		if err := os.WriteFile(file, []byte(manifest.String()), 0o600); err != nil {
			return err
		}
		listen := freeAddress()
		cmd := exec.Command(filepath.Join(l.dir, "levada"), "run", file, "--quiet", "--data", filepath.Join(l.dir, fmt.Sprintf("data%d", at)), "--nats", l.url, "--replicas", strconv.Itoa(l.replicas), "--listen", listen)
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		if err := cmd.Start(); err != nil {
			return err
		}
		l.runs = append(l.runs, cmd)
		if err := l.until("the pipelines run", func() bool { return ask(listen, "readyz", nil) == nil }); err != nil {
			return err
		}
	}
	return nil
}

// usage is CPU time and memory of processes.
type usage struct {
	cpu time.Duration
	rss int64 // bytes
}

// used reads /proc.
func used(processes []*exec.Cmd) (u usage, err error) {
	const tick = 100 // of the kernel, a second
	for _, p := range processes {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Process.Pid))
		if err != nil {
			return u, err
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		fields := strings.Fields(rest)
		if len(fields) < 22 {
			return u, fmt.Errorf("/proc/%d/stat has %d fields", p.Process.Pid, len(fields))
		}
		user, err1 := strconv.ParseInt(fields[11], 10, 64)
		system, err2 := strconv.ParseInt(fields[12], 10, 64)
		pages, err3 := strconv.ParseInt(fields[21], 10, 64)
		if err := errors.Join(err1, err2, err3); err != nil {
			return u, err
		}
		u.cpu += time.Duration(user+system) * time.Second / tick
		u.rss += pages * int64(os.Getpagesize())
	}
	return u, nil
}

// kept is what the brokers keep.
type kept struct {
	streams, groups, consumers int
	blocks, states             uint64 // sequences of buffers, and of buckets
}

// keep asks the brokers. A stream is counted at its leader. Each stream with replicas is a raft group, and so are the metadata.
func (l *lab) keep() (k kept, err error) {
	if l.replicas > 1 {
		k.groups = 1
	}
	for i, m := range l.monitors {
		var info server.JSInfo
		if err := ask(m, "jsz?streams=true&consumers=true&config=true&limit=10000", &info); err != nil {
			return k, err
		}
		for _, account := range info.AccountDetails {
			for _, s := range account.Streams {
				k.consumers += len(s.Consumer) // each is in the memory of one broker
				if l.replicas > 1 && (s.Cluster == nil || s.Cluster.Leader != fmt.Sprintf("n%d", i)) {
					continue
				}
				k.streams++
				if s.Config.Replicas > 1 {
					k.groups++
				}
				if strings.HasPrefix(s.Name, "KV_") {
					k.states += s.State.LastSeq
				} else {
					k.blocks += s.State.LastSeq
				}
			}
		}
	}
	return k, nil
}

func (l *lab) measure(out *tabwriter.Writer, n int, long time.Duration) error {
	time.Sleep(5 * time.Second) // what starts has started
	type sample struct {
		brokers, runs usage
		kept          kept
		at            time.Time
	}
	take := func() (s sample, err error) {
		var errs [3]error
		s.kept, errs[0] = l.keep()
		s.brokers, errs[1] = used(l.brokers)
		s.runs, errs[2] = used(l.runs)
		s.at = time.Now()
		return s, cmp.Or(errs[0], errs[1], errs[2])
	}
	a, err := take()
	if err != nil {
		return err
	}
	time.Sleep(long)
	b, err := take()
	if err != nil {
		return err
	}
	d := b.at.Sub(a.at)
	percent := func(before, after usage) float64 { return 100 * (after.cpu - before.cpu).Seconds() / d.Seconds() }
	fmt.Fprintf(out, "%d\t%.1f\t%.1f\t%d\t%d\t%d\t%d\t%d\t%.0f\t%.0f\t\n", n, percent(a.brokers, b.brokers), percent(a.runs, b.runs), b.brokers.rss>>20, b.runs.rss>>20,
		b.kept.streams, b.kept.groups, b.kept.consumers, float64(b.kept.blocks-a.kept.blocks)/d.Seconds(), float64(b.kept.states-a.kept.states)/d.Seconds())
	return nil
}

// stop ends everything: pipelines first.
func (l *lab) stop() {
	for _, list := range [][]*exec.Cmd{l.runs, l.brokers} {
		for _, cmd := range list {
			_ = cmd.Process.Signal(syscall.SIGTERM)
			kill := time.AfterFunc(30*time.Second, func() { _ = cmd.Process.Kill() })
			_ = cmd.Wait()
			kill.Stop()
		}
	}
}
