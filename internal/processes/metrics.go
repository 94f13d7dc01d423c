package processes

import (
	"errors"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// processLabel tells the series of processes apart. Those that Numaflow has, too, also have its label replica.
const processLabel = "process"

// ownProcess is the value of the label for this process, which moves no messages.
const ownProcess = "run"

// serveMetrics merges the metrics of all processes. One that does not answer is missing from this scrape; levada_processes says that it is there.
func (r *run) serveMetrics(w http.ResponseWriter, req *http.Request) {
	merged, err := r.host.Gather(req.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	families := map[string]*dto.MetricFamily{}
	for _, f := range append(merged, r.ownMetrics()...) {
		add(families, f, ownProcess)
	}
	all, _ := r.instances()
	var mu sync.Mutex
	r.ask(req.Context(), all, "/metrics", func(n int, res *http.Response, err error) {
		if err == nil {
			err = r.merge(families, &mu, all[n].name, res)
		}
		if err != nil {
			r.log.Debug("metrics of a process are missing", "process", all[n].name, "error", err)
		}
	})
	format := expfmt.NegotiateAccept(req.Header, expfmt.DefaultAcceptedFormats()...)
	w.Header().Set("Content-Type", string(format))
	e := expfmt.NewEncoder(w, format)
	for _, name := range slices.Sorted(maps.Keys(families)) {
		if e.Encode(families[name]) != nil {
			return // the scraper has gone
		}
	}
	if c, ok := e.(expfmt.Closer); ok {
		_ = c.Close()
	}
}

// merge reads the metrics of a process.
func (r *run) merge(into map[string]*dto.MetricFamily, mu *sync.Mutex, process string, res *http.Response) error {
	if res.StatusCode != http.StatusOK {
		return errors.New(res.Status)
	}
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(res.Body)
	if err != nil {
		return err
	}
	mu.Lock()
	defer mu.Unlock()
	for _, f := range families {
		add(into, f, process)
	}
	return nil
}

// add adds the series of a process, with its label.
func add(into map[string]*dto.MetricFamily, f *dto.MetricFamily, process string) {
	name, value := processLabel, process
	for _, m := range f.Metric {
		m.Label = append(m.Label, &dto.LabelPair{Name: &name, Value: &value})
		slices.SortFunc(m.Label, func(a, b *dto.LabelPair) int { return strings.Compare(a.GetName(), b.GetName()) })
	}
	if known := into[f.GetName()]; known != nil {
		known.Metric = append(known.Metric, f.Metric...)
		return
	}
	into[f.GetName()] = f
}

// ownMetrics are those about processes.
func (r *run) ownMetrics() []*dto.MetricFamily {
	gauge, counter := dto.MetricType_GAUGE, dto.MetricType_COUNTER
	running := &dto.MetricFamily{Name: text("levada_processes_running"), Help: text("Processes of a vertex that run."), Type: &gauge}
	wanted := &dto.MetricFamily{Name: text("levada_processes_wanted"), Help: text("Processes that a vertex is to have."), Type: &gauge}
	restarts := &dto.MetricFamily{Name: text("levada_process_restarts_total"), Help: text("Processes that ended unexpectedly and were started again."), Type: &counter}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, p := range r.pipelines {
		for _, g := range p.groups {
			labels := func() []*dto.LabelPair {
				return []*dto.LabelPair{
					{Name: text("namespace"), Value: text(p.of.Namespace)}, {Name: text("pipeline"), Value: text(p.of.Name)}, {Name: text("vertex"), Value: text(g.of.Name)},
				}
			}
			n, w, s := float64(g.running()), float64(g.wanted), float64(g.restarts)
			running.Metric = append(running.Metric, &dto.Metric{Label: labels(), Gauge: &dto.Gauge{Value: &n}})
			wanted.Metric = append(wanted.Metric, &dto.Metric{Label: labels(), Gauge: &dto.Gauge{Value: &w}})
			restarts.Metric = append(restarts.Metric, &dto.Metric{Label: labels(), Counter: &dto.Counter{Value: &s}})
		}
	}
	return []*dto.MetricFamily{running, wanted, restarts}
}

func text(s string) *string { return &s }
