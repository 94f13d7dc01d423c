package main

import (
	"bytes"
	"encoding/json"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"text/template"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/levada-io/levada/bench/proxy/rawmessage"
	"github.com/levada-io/levada/internal/testserver"
)

// What h2load 1.52 prints at its end.
const h2loadSays = `
finished in 52.81ms, 18935.11 req/s, 3.09MB/s
requests: 1000 total, 1000 started, 1000 done, 998 succeeded, 2 failed, 0 errored, 0 timeout
status codes: 998 2xx, 0 3xx, 0 4xx, 2 5xx
traffic: 163.42KB (167344) total, 35.29KB (36136) headers (space savings 79.92%), 102.54KB (105000) data
                     min         max         mean         sd        +/- sd
time for request:     1.07ms     12.40ms      4.91ms      1.84ms    71.10%
`

func TestParseH2load(t *testing.T) {
	whole := strings.Replace(h2loadSays, "998 succeeded, 2 failed", "1000 succeeded, 0 failed", 1)
	for name, c := range map[string]struct {
		said string
		size int
		want outcome
	}{
		"two failed":        {h2loadSays, 105, outcome{Done: 998, Failed: 2, Seconds: 0.05281, Error: "status codes: 998 2xx, 0 3xx, 0 4xx, 2 5xx"}},
		"all succeeded":     {whole, 105, outcome{Done: 1000, Seconds: 0.05281}},
		"answers too short": {whole, 106, outcome{Failed: 1000, Seconds: 0.05281, Error: "105000 bytes of messages came, not 106000"}},
	} {
		got, err := parseH2load(c.said, c.size)
		if diff := cmp.Diff(c.want, got, cmpopts.EquateApprox(0, 1e-9)); diff != "" || err != nil {
			t.Errorf("%s: error %v, want (-) and got (+):\n%s", name, err, diff)
		}
	}
	if _, err := parseH2load("Could not connect to the specified host\n", 105); err == nil {
		t.Error("no figures, and no error")
	}
}

func TestParseH2loadLog(t *testing.T) {
	got, err := parseH2loadLog(strings.NewReader("1609459200000001\t200\t1070\n1609459200000100\t200\t900\n"))
	if diff := cmp.Diff([]float64{1070, 900}, got); diff != "" || err != nil {
		t.Errorf("error %v, want (-) and got (+):\n%s", err, diff)
	}
	if _, err := parseH2loadLog(strings.NewReader("1609459200000001\t200\n")); err == nil {
		t.Error("a line without a time, and no error")
	}
}

func TestPercentile(t *testing.T) {
	hundred := make([]int, 100)
	for i := range hundred {
		hundred[i] = i + 1
	}
	for share, want := range map[float64]int{0: 1, 0.5: 50, 0.99: 99, 1: 100} {
		if got := percentile(hundred, share); got != want {
			t.Errorf("percentile %g of 1 to 100 is %d, want %d", share, got, want)
		}
	}
}

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   float64
		there  bool
	}{{nil, 0, false}, {[]float64{3, 1, 2}, 2, true}, {[]float64{4, 1, 2, 3}, 2.5, true}} {
		if got, there := median(c.values); got != c.want || there != c.there {
			t.Errorf("median of %v is %g (%v), want %g (%v)", c.values, got, there, c.want, c.there)
		}
	}
}

func TestVerdicts(t *testing.T) {
	cpu := func(values ...float64) *figure { return &figure{CPU: values} }
	c := benchCase{goal: goal{Measure: "cpu", AtMost: 6, Against: "nghttpx", Times: 1, Worse: 0.15}}
	for name, x := range map[string]struct {
		now, earlier figures
		want         []string
	}{
		"both met":      {figures{"ours": cpu(5), "nghttpx": cpu(5.5)}, nil, []string{"met", "met"}},
		"too much":      {figures{"ours": cpu(7), "nghttpx": cpu(8)}, nil, []string{"MISSED", "met"}},
		"not below":     {figures{"ours": cpu(5), "nghttpx": cpu(5)}, nil, []string{"met", "MISSED"}},
		"no ours":       {figures{"ours": {Missing: "why"}, "nghttpx": cpu(5)}, nil, []string{"ours is not there"}},
		"ours broke":    {figures{"ours": {CPU: []float64{1}, Broken: "why"}, "nghttpx": cpu(5)}, nil, []string{"MISSED"}},
		"no peer":       {figures{"ours": cpu(5)}, nil, []string{"met", "not judged"}},
		"calls failed":  {figures{"ours": {CPU: []float64{5}, Failed: 1}, "nghttpx": cpu(6)}, nil, []string{"met", "MISSED", "met"}},
		"worse":         {figures{"ours": cpu(5), "nghttpx": cpu(5.1)}, figures{"ours": cpu(4), "nghttpx": cpu(5)}, []string{"met", "met", "MISSED"}},
		"only noise":    {figures{"ours": cpu(5.5), "nghttpx": cpu(6)}, figures{"ours": cpu(4), "nghttpx": cpu(5)}, []string{"met", "met", "met"}},
		"nothing known": {figures{"ours": cpu(5), "nghttpx": cpu(6)}, figures{}, []string{"met", "met", "not judged"}},
	} {
		got := c.verdicts(x.now, x.earlier)
		if len(got) != len(x.want) {
			t.Errorf("%s: %q, want %q", name, got, x.want)
			continue
		}
		for i := range got {
			if !strings.HasPrefix(got[i], x.want[i]) {
				t.Errorf("%s: line %d is %q, want %q", name, i+1, got[i], x.want[i])
			}
		}
	}
}

func TestVerdictsOfALimit(t *testing.T) {
	c := benchCase{goal: goal{Measure: "live", AtLeast: 500, Answers: true}}
	got := c.verdicts(figures{"ours": {Limit: []limitResult{{Live: 500}}}}, nil)
	if diff := cmp.Diff([]string{"met: 500, at least 500", "MISSED: a new call is answered"}, got); diff != "" {
		t.Errorf("want (-) and got (+):\n%s", diff)
	}
}

// TestCases reads those of the repository.
func TestCases(t *testing.T) {
	t.Chdir("../..")
	cases, err := readCases(nil, options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		if g := c.goal; g.AtMost == 0 && g.AtLeast == 0 && g.Against == "" {
			t.Errorf("%s has no goal", c.name)
		}
	}
	if _, err := readCases([]string{"unary"}, options{requests: 5}); err == nil || !strings.Contains(err.Error(), "too few") {
		t.Errorf("5 requests for 128 streams: error %v", err)
	}
}

// TestPeersTakeTheirConfiguration asks those programs that can check a file, with and without TLS.
func TestPeersTakeTheirConfiguration(t *testing.T) {
	dir := t.TempDir()
	plain := place{Listen: "127.0.0.1:12345", Backend: "127.0.0.1:12346", Dir: dir, Descriptors: descriptorLimit()}
	secure := plain
	secure.Cert, secure.Key, secure.Pem = filepath.Join(dir, "cert"), filepath.Join(dir, "key"), filepath.Join(dir, "pem")
	if err := certificate(secure.Cert, secure.Key, secure.Pem); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		template string
		check    []string
	}{
		"nginx":   {"nginx.conf.tmpl", []string{"-t", "-c"}},
		"haproxy": {"haproxy.cfg.tmpl", []string{"-c", "-f"}},
	} {
		t.Run(name, func(t *testing.T) {
			program := testserver.Program(t, name, name)
			for _, at := range []place{plain, secure} {
				var config bytes.Buffer
				if err := template.Must(template.ParseFS(peers, "peers/"+c.template)).Execute(&config, at); err != nil {
					t.Fatal(err)
				}
				path := filepath.Join(dir, c.template)
				if err := os.WriteFile(path, config.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
				if said, err := exec.Command(program, append(c.check, path)...).CombinedOutput(); err != nil {
					t.Errorf("%v: %s\n%s", err, said, config.String())
				}
			}
		})
	}
}

// TestTraffic lets the generator talk to the backend, with nothing in between.
func TestTraffic(t *testing.T) {
	address, err := freeAddress()
	if err != nil {
		t.Fatal(err)
	}
	go func() { // ends with the test binary
		if err := serve(address, load{Size: 100, Seed: 1, BackendStreams: 2}); err != nil {
			panic(err)
		}
	}()
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		c, err := net.Dial("tcp", address)
		if err == nil {
			c.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		kind, commands string
		size           int
		done, failed   []int
	}{
		{"unary", "run 10\ncall 1\n", 100, []int{10, 1}, []int{0, 0}},
		{"pingpong", "run 10\nrun 6\n", 100, []int{10, 6}, []int{0, 0}},
		{"stream", "run 10\n", 100, []int{10}, []int{0}},
		{"stream", "run 10\n", 99, []int{0}, []int{2}}, // the backend's messages have another size than they should
		{"idle", "open 2\nopen 6\n", 100, []int{2, 4}, []int{0, 0}},
	} {
		g := generator{load: load{Kind: c.kind, Connections: 1, Streams: 2, Size: c.size}, target: address, credentials: insecure.NewCredentials()}
		g.message = rawmessage.New(g.load.payload())
		conn, err := g.dial()
		if err != nil {
			t.Fatal(err)
		}
		g.connections = append(g.connections, conn)
		var out bytes.Buffer
		if err := g.obey(strings.NewReader(c.commands), &out); err != nil {
			t.Fatal(err)
		}
		answers := json.NewDecoder(&out)
		for i := range c.done {
			var o outcome
			if err := answers.Decode(&o); err != nil {
				t.Fatal(err)
			}
			if o.Done != c.done[i] || o.Failed != c.failed[i] {
				t.Errorf("%s, answer %d: %d done and %d failed (%s), want %d and %d", c.kind, i+1, o.Done, o.Failed, o.Error, c.done[i], c.failed[i])
			}
		}
		for _, conn := range g.connections {
			conn.Close()
		}
	}
}
