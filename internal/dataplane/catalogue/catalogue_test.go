package catalogue

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/levada-io/levada/internal/dataplane/function"
	"github.com/levada-io/levada/internal/dataplane/function/builtin"
	"github.com/levada-io/levada/internal/flow"
	"github.com/levada-io/levada/internal/flow/metadata"
)

var update = flag.Bool("update", false, "write the tables of docs/builtins.md anew")

// TestManifests asks for every sample image that the manifests of Numaflow 1.8 (examples, test) name.
func TestManifests(t *testing.T) {
	have := `go/map-cat go/map-even-odd go/map-retry go/map-forward-message go/map-filter go/map-filter-id go/map-flatmap go/map-flatmap-stream go/batch-map-flatmap go/map-metadata
		go/redis-sink go/fb-sink-log go/sink-log go/sink-panic go/sink-metadata go/sink-retry-e2e go/sink-failure go/on-success-log
		go/source-simple-source go/source-metadata go/transformer-metadata go/mapt-assign-event-time go/mapt-event-time-filter go/mapt-event-time-extractor-with-format
		rs/redis-sink rs/map-cat rs/sink-log rs/simple-source rs/source-transformer-now rs/source-transformer-bypass rs/mapt-event-time-filter rs/map-even-odd rs/map-bypass-cat rs/batchmap-flatmap
		java/simple-sink java/source-simple-source java/mapt-event-time-filter-function java/map-flatmap java/flat-map-stream java/even-odd java/batch-map-flatmap
		python/sink-log python/simple-source python/mapt-event-time-filter python/map-flatmap python/map-flatmap-stream python/batch-map-flatmap`
	for _, image := range strings.Fields(have) {
		if _, err := ForImage("quay.io/numaio/numaflow-"+image+":stable", Options{}); err != nil {
			t.Errorf("%s: %v", image, err)
		}
	}
	not := `go/reduce-sum go/reduce-counter go/reduce-stream-sum go/session-counter go/stream-sorter go/sideinput-function go/map-sideinput go/map-sideinput-udf go/reduce-sideinput go/reduce-sideinput-udf
		go/simple-source-with-sideinput go/redis-sink-with-sideinput go/serving-redis-store rs/stream-sorter rs/session-counter
		java/stream-sorter java/session-reduce-count java/reduce-sum java/reduce-stream-sum`
	for _, image := range strings.Fields(not) {
		_, err := ForImage("quay.io/numaio/numaflow-"+image+":stable", Options{})
		_, name, _ := strings.Cut(image, "/")
		if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", image, err)
		}
	}
}

func TestForImage(t *testing.T) {
	for _, c := range []struct{ image, want string }{
		{"quay.io/numaio/numaflow-go/map-cat:stable", "cat"},
		{"localhost:5000/mirror/numaflow-rs/map-cat", "cat"},
		{"numaflow-java/map-forward-message@sha256:0123", "cat"},
		{"quay.io/numaio/numaflow-go/map-cat:v0.5.0@sha256:0123", "cat"},
		{"numaflow-java-examples/even-odd:stable", "even-odd"},
		{"ghcr.io/acme/redis-sink:1.0", "!builtin: {name: redis-sink}"},
		{"redis-sink", "!builtin: {name: redis-sink}"},
		{"numaflow-go/map-catt", "!near it are map-cat"},
		{"numaflow-go/even_odd", "!near it are even-odd"},
		{"acme/billing:7", "!levada builtins"},
		{"acme/reduce-sum", "!no builtin stands in"},
		{"numaflow-go/reduce-sum", "!it is a sample of a reduce: not in this version"},
		{"", "!no builtin"},
	} {
		p, err := ForImage(c.image, Options{})
		if text, fails := strings.CutPrefix(c.want, "!"); fails {
			if err == nil || !strings.Contains(err.Error(), text) || !(errors.Is(err, ErrUnknown) || errors.Is(err, ErrUnsupported)) {
				t.Errorf("%s: %v, want %q", c.image, err, text)
			}
			continue
		}
		if err != nil || p.Name != c.want {
			t.Errorf("%s: %+v, %v", c.image, p, err)
		}
	}
}

func TestNamed(t *testing.T) {
	type kw = map[string]string
	for _, c := range []struct {
		name   string
		args   []string
		kwargs kw
		want   string
	}{
		{"cat", nil, nil, "cat"},
		{"map-cat", nil, nil, "cat"},
		{"filter", nil, kw{"expression": "true"}, "filter"},
		{"filter", []string{"true"}, nil, "filter"},
		{"map-filter", nil, nil, "filter"},
		{"eventTimeExtractor", nil, kw{"expression": "payload", "format": time.RFC3339}, "eventTimeExtractor"},
		{"timeExtractionFilter", nil, kw{"filterExpr": "true", "eventTimeExpr": "payload", "eventTimeFormat": time.RFC3339}, "timeExtractionFilter"},
		{"cat", []string{"x"}, nil, "!it takes none"},
		{"filter", nil, nil, `!"expression" is missing`},
		{"filter", nil, kw{"expresion": "true"}, `!no argument "expresion"; it takes expression`},
		{"filter", nil, kw{"expression": "1 +"}, "!unexpected token"},
		{"filter", nil, kw{"expression": "sprig.contain('a', payload)"}, "!no sprig.contain here; near it are contains"},
		{"filter", nil, kw{"expression": strings.Repeat(" ", 20_000) + "true"}, "!at most 16384"},
		{"timeExtractionFilter", nil, kw{"filterExpr": "true"}, `!"eventTimeExpr" is missing`},
		{"catt", nil, nil, "!near it are cat"},
		{"reduce-sum", nil, nil, "!not in this version"},
	} {
		p, err := Named(c.name, c.args, c.kwargs, Options{})
		if text, fails := strings.CutPrefix(c.want, "!"); fails {
			if err == nil || !strings.Contains(err.Error(), text) {
				t.Errorf("%s %v: %v, want %q", c.name, c.kwargs, err, text)
			}
			continue
		}
		if err != nil || p.Name != c.want {
			t.Errorf("%s: %+v, %v", c.name, p, err)
		}
	}
}

// TestCatalogue: names are given once, and every program can be made, is of its kind and survives any message.
func TestCatalogue(t *testing.T) {
	seen := map[string]bool{}
	for _, d := range List() {
		names := []string{d.Name}
		for _, image := range d.Images {
			_, name, _ := strings.Cut(image, "/")
			if name != d.Name && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
		for _, name := range names {
			if seen[name] || unsupported[name] != "" {
				t.Errorf("%s is given twice", name)
			}
			seen[name] = true
		}
		args := map[string]string{}
		for _, a := range d.Takes {
			args[a] = "true"
		}
		p, err := Named(d.Name, nil, args, Options{Env: map[string]string{"SLEEP_SECONDS": "0"}})
		if err != nil {
			t.Fatal(err)
		}
		if (p.Map != nil) != (d.Kind == Map || d.Kind == Transformer) || (p.Source != nil) != (d.Kind == Source) || (p.Sink != nil) != (d.Kind == Sink) || p.Kind != d.Kind || p.Does == "" {
			t.Errorf("%+v", p)
		}
		bad := []flow.Message{{}, {Value: []byte("\xff\x00{")}, {Metadata: []byte{0xff}, Headers: flow.Headers{9}}, {Metadata: []byte{26, 9}, EventTime: -1 << 63}}
		if p.Map != nil {
			out, err := p.Map(t.Context(), bad)
			if err != nil || len(out) != len(bad) {
				t.Errorf("%s: %d outcomes, %v", d.Name, len(out), err)
			}
		}
		if p.Sink != nil {
			if results, err := p.Sink.Write(t.Context(), &flow.Block{Messages: bad}); err != nil || results != nil && len(results) != len(bad) {
				t.Errorf("%s: %d results, %v", d.Name, len(results), err)
			}
		}
	}
}

// TestDocs keeps the tables of docs/builtins.md equal to List. Run it with -update to write them.
func TestDocs(t *testing.T) {
	const path, begin, end = "../../../docs/builtins.md", "<!-- table: written by go test ./internal/dataplane/catalogue -run Docs -update -->\n", "<!-- end of table -->\n"
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok1 := strings.Cut(string(b), begin)
	old, tail, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Fatal("docs/builtins.md has lost the marks of its table")
	}
	names := builtin.Sprig()
	if all := strings.Join(names, ", "); !strings.Contains(strings.ReplaceAll(tail, "\n", " "), all) {
		t.Errorf("docs/builtins.md does not have the list of sprig functions: %s", all)
	}
	var w strings.Builder
	w.WriteString("| kind | name | arguments | what it does | stands in for |\n|---|---|---|---|---|\n")
	for _, d := range List() {
		takes := strings.Join(d.Takes, ", ")
		fmt.Fprintf(&w, "| %s | `%s` | %s | %s | %s |\n", d.Kind, d.Name, takes, strings.ReplaceAll(d.Does, "|", "\\|"), strings.Join(d.Images, ", "))
	}
	if w.String() == old {
		return
	}
	if !*update {
		t.Fatal("docs/builtins.md is out of date: run this test with -update")
	}
	if err := os.WriteFile(path, []byte(head+begin+w.String()+end+tail), 0o644); err != nil {
		t.Fatal(err)
	}
}

// in makes messages of payloads, each with everything that a message has.
func in(payloads ...string) []flow.Message {
	messages := make([]flow.Message, len(payloads))
	for i, p := range payloads {
		messages[i] = flow.Message{
			ID: fmt.Sprint("in/0/", i), Pos: uint64(i + 1), Keys: []string{"k"}, Value: []byte(p), EventTime: 1_650_000_000e9, Ingested: 1_700_000_000e9,
			Headers: flow.AppendHeader(nil, "h", "1"), Metadata: metadata.WithUser([]byte{18, 3, 10, 1, 's'}, metadata.Groups{"g": {"k": []byte("v")}}),
		}
	}
	return messages
}

// show writes what was made of each message: value[keys]#tags, "-" for a dropped one, "!" for a broken one.
func show(out []function.Outcome) string {
	var all []string
	for _, o := range out {
		switch {
		case o.Verdict == function.Broken:
			all = append(all, "!"+string(o.Failure.Reason))
		case len(o.Results) == 0:
			all = append(all, strings.Repeat("-", max(o.Dropped, 1)))
		default:
			var parts []string
			for _, m := range o.Results {
				parts = append(parts, fmt.Sprintf("%s%v%s", m.Value, m.Keys, strings.Join(append([]string{""}, m.Tags...), "#")))
			}
			all = append(all, strings.Join(parts, "+"))
		}
	}
	return strings.Join(all, " ")
}

func TestMaps(t *testing.T) {
	const good, tick = `{"id":5,"msg":"hello","desc":"a good one"}`, `{"Data":{"value":7},"Createdts":1600000000000000000}`
	for _, c := range []struct {
		name string
		in   []string
		want string
	}{
		{"cat", []string{"a", ""}, "a[k] [k]"},
		{"slow-cat", []string{"a", "b"}, "a[k] b[k]"},
		{"even-odd", []string{"2", "-3", "x", "", "2.0"}, "2[even]#even-tag -3[odd]#odd-tag - - -"},
		{"flatmap", []string{"a,b", "c", "", ",d"}, "a[k]+b[k] c[k] [k] [k]+d[k]"},
		{"map-filter", []string{good, `{"id":"5","msg":"hello","desc":"good"}`, `{"id":500,"msg":"hello","desc":"good"}`, `{"id":5}`}, good + `[k] {"id":"5","msg":"hello","desc":"good"}[k] - -`},
		{"map-filter", []string{"no json", `{"msg":"hello"}`, `[1]`}, "!error !error !error"},
		{"map-filter-id", []string{`{"id":99}`, `{"id":100}`, `{"id":"x"}`}, `{"id":99}[k] - !error`},
		{"map-bypass-cat", []string{"on-success-message", "Fallback and primary", "x"}, "on-success-message[k]#onSuccess Fallback and primary[k]#fallback#sink x[k]"},
		{"map-metadata", []string{"a"}, "a[k]"},
		{"tickgen", []string{tick, "x"}, `{"Value":7,"Time":"2020-09-13T12:26:40Z"}[k] -`},
	} {
		t.Run(c.name, func(t *testing.T) {
			p, err := Named(c.name, nil, nil, Options{Env: map[string]string{"SLEEP_SECONDS": "0"}})
			if err != nil {
				t.Fatal(err)
			}
			given, before := in(c.in...), in(c.in...)
			out, err := p.Map(t.Context(), given)
			if err != nil {
				t.Fatal(err)
			}
			if got := show(out); got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
			if !reflect.DeepEqual(given, before) {
				t.Error("it has changed its input")
			}
			if again, _ := p.Map(t.Context(), given); show(again) != show(out) {
				t.Error("it gives something else when it is called again")
			}
			for i, o := range out {
				for _, m := range o.Results {
					if m.EventTime != given[i].EventTime || m.Ingested != given[i].Ingested || !bytes.Equal(m.Headers, given[i].Headers) || c.name != "map-metadata" && !bytes.Equal(m.Metadata, given[i].Metadata) || m.Pos != given[i].Pos {
						t.Errorf("message %d has lost something: %+v", i, m)
					}
				}
			}
		})
	}
}

// TestRetry sends the results of retry back to it, as a cycle does.
func TestRetry(t *testing.T) {
	p, err := Named("map-retry", nil, nil, Options{})
	if err != nil {
		t.Fatal(err)
	}
	messages := in("a", "a")
	for pass, want := range []string{"a[k]#retry a[k]#retry", "a[k]#retry a[k]#retry", "a[k] a[k]"} {
		out, err := p.Map(t.Context(), messages)
		if err != nil || show(out) != want {
			t.Fatalf("pass %d: %s, %v", pass, show(out), err)
		}
		for i := range messages {
			messages[i] = out[i].Results[0]
		}
	}
	if !bytes.Equal(messages[0].Metadata, in("a")[0].Metadata) {
		t.Error("its count is still in the metadata")
	}
}

func TestMetadata(t *testing.T) {
	var printed bytes.Buffer
	opt := Options{Stdout: &printed}
	user := func(name string, m []flow.Message) []flow.Message {
		p, err := Named(name, nil, nil, opt)
		if err != nil {
			t.Fatal(err)
		}
		out, err := p.Map(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		return out[0].Results
	}
	m := user("map-metadata", user("transformer-metadata", in("a")))
	if m[0].EventTime != 1_700_000_000e9 {
		t.Errorf("event time %d", m[0].EventTime)
	}
	if !bytes.HasPrefix(m[0].Metadata, []byte{18, 3, 10, 1, 's'}) {
		t.Errorf("system metadata is lost: %x", m[0].Metadata)
	}
	p, err := Named("sink-metadata", nil, nil, opt)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.Sink.Write(t.Context(), &flow.Block{Messages: m}); err != nil {
		t.Fatal(err)
	}
	want := "Groups at mapper: [event-time-group g]\nUser Metadata: event-time-group/event-time=2023-11-14T22:13:20Z g/k=v map-group/map-key=map-value\n"
	if printed.String() != want {
		t.Errorf("got  %swant %s", &printed, want)
	}
}

func TestTransformers(t *testing.T) {
	at := func(s string) int64 {
		v, err := time.Parse(time.RFC3339, s)
		if err != nil {
			t.Fatal(err)
		}
		return v.UnixNano()
	}
	const old, mid = "2021-12-31T23:59:59Z", "2022-05-01T00:00:00Z"
	for _, c := range []struct {
		name, payload, eventTime string
		want, wantTime           string
	}{
		{"mapt-event-time-filter", "x", old, "-", ""},
		{"mapt-event-time-filter", "x", mid, "x[k]#within_year_2022", "2022-01-01T00:00:00Z"},
		{"mapt-event-time-filter", "x", "2023-01-01T00:00:00Z", "x[k]#after_year_2022", "2023-01-01T00:00:00Z"},
		{"mapt-assign-event-time", "x", mid, "x[k]", "2023-11-14T22:13:20Z"},
		{"source-transformer-now", "x", mid, "x[k]", "2023-11-14T22:13:20Z"},
		{"source-transformer-bypass", "primary", mid, "primary[k]#sink", "2023-11-14T22:13:20Z"},
		{"mapt-filter", `{"id":500}`, mid, "-", ""},
		{"mapt-event-time-extractor", `{"item":[0,{"time":"2021-02-18T21:54:42Z"}]}`, mid, `{"item":[0,{"time":"2021-02-18T21:54:42Z"}]}[k]`, "2021-02-18T21:54:42Z"},
		{"mapt-event-time-extractor", "no json", mid, "no json[k]", mid},
		{"mapt-event-time-extractor", `{"item":[]}`, mid, `{"item":[]}[k]`, mid},
		{"mapt-event-time-extractor-with-format", `{"time":"2021-02-18T21:54:42+01:00"}`, mid, `{"time":"2021-02-18T21:54:42+01:00"}[k]`, "2021-02-18T20:54:42Z"},
		{"mapt-event-time-extractor-with-format", `{"time":"yesterday"}`, mid, `{"time":"yesterday"}[k]`, mid},
		{"mapt-time-extraction-filter", `{"id":1,"time":1613685282}`, mid, `{"id":1,"time":1613685282}[k]`, "2021-02-18T21:54:42Z"},
		{"mapt-time-extraction-filter", `{"id":100,"time":1613685282}`, mid, "-", ""},
		{"mapt-time-extraction-filter", `no json`, mid, "!error", ""},
	} {
		p, err := Named(c.name, nil, nil, Options{})
		if err != nil {
			t.Fatal(err)
		}
		m := in(c.payload)
		m[0].EventTime = at(c.eventTime)
		out, err := p.Map(t.Context(), m)
		if err != nil || show(out) != c.want || c.wantTime != "" && out[0].Results[0].EventTime != at(c.wantTime) {
			t.Errorf("%s of %s at %s: %s %+v, %v", c.name, c.payload, c.eventTime, show(out), out, err)
		}
	}
}
