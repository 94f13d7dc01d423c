package observe

import (
	"cmp"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/levada-io/levada/internal/proxy"
	"github.com/levada-io/levada/internal/proxy/config"
)

// Metrics makes a proxy's counters metrics, when somebody asks for them. Their labels are names of the configuration and words of ours, endpoints only
// where a state is shown, and up to a number of methods that the configuration asks for and a backend has served: what clients send adds no other series.
type Metrics struct {
	Proxy *proxy.Proxy
	// Log and Tap may be nil.
	Log *AccessLog
	Tap *Tap
	// File reports whether the file of the configuration can be read, and whether there is one; nil for none.
	File func() (readable, ok bool)

	reloads, failedReloads atomic.Int64
	loaded                 atomic.Int64 // Unix time
}

// Reloaded counts an attempt to put another configuration in force.
func (m *Metrics) Reloaded(err error) {
	if err != nil {
		m.failedReloads.Add(1)
		return
	}
	m.reloads.Add(1)
	m.loaded.Store(time.Now().Unix())
}

// Metric is what one metric means.
type Metric struct {
	Name, Type string
	Labels     []string
	Help       string
}

type metric struct {
	Metric
	kind prometheus.ValueType
	desc *prometheus.Desc
}

// all is every metric, in the order of the documentation.
var all []*metric

func define(kind prometheus.ValueType, name, help string, labels ...string) *metric {
	types := map[prometheus.ValueType]string{prometheus.CounterValue: "counter", prometheus.GaugeValue: "gauge", prometheus.UntypedValue: "histogram"}
	m := &metric{Metric: Metric{"levada_proxy_" + name, types[kind], labels, help}, kind: kind}
	m.desc = prometheus.NewDesc(m.Name, m.Help, labels, nil)
	all = append(all, m)
	return m
}

func counter(name, help string, labels ...string) *metric {
	return define(prometheus.CounterValue, name, help, labels...)
}

func gauge(name, help string, labels ...string) *metric {
	return define(prometheus.GaugeValue, name, help, labels...)
}

var (
	calls      = counter("calls_total", "Calls that have begun.", "route", "method")
	open       = gauge("open_streams", "Calls that are open.", "route", "method")
	ended      = counter("calls_ended_total", "Calls that have ended, by the status that the client got. The backend is empty for calls that were refused before one was chosen.", "route", "method", "backend", "grpc_status")
	reasons    = counter("ends_total", "Calls that have ended, by who ended them and why: BACKEND, CLIENT_CANCELLED, CLIENT_DISCONNECTED, or the reason that the proxy gave.", "route", "method", "backend", "reason")
	resets     = counter("backend_resets_total", "Calls that the backend ended with RST_STREAM.", "route", "method", "backend")
	took       = define(prometheus.UntypedValue, "call_duration_seconds", "Time from a call's headers to its end.", "route", "method", "backend")
	messages   = counter("messages_total", "Whole messages that came, also in calls that are open; direction is request or response.", "route", "method", "backend", "direction")
	data       = counter("data_bytes_total", "Bytes of DATA that came, also in calls that are open; direction is request or response.", "route", "method", "backend", "direction")
	retries    = counter("retries_total", "Failed calls that were tried again, as the route's policy says.", "route")
	overBudget = counter("retries_over_budget_total", "Failed calls that were not tried again because the route's budget for retries was used up.", "route")
	replays    = counter("transparent_retries_total", "Calls that were sent again because an endpoint provably had not processed them.", "route")

	clients    = gauge("connections", "Connections of clients that are open.")
	accepted   = counter("connections_total", "Connections of clients that were accepted.")
	refused    = counter("refused_streams_total", "Streams that were refused because their connection had as many as it may.")
	full       = counter("connections_full_total", "Times that a connection of a client had as many streams as maxStreams allows, so that its further calls wait in the client's library.")
	overCalls  = counter("over_budget_calls_total", "Calls that were refused because their connection's abuse budget was used up.")
	overConns  = counter("over_budget_connections_total", "Connections of clients that were closed because their abuse budget was used up twice over.")
	noMemory   = counter("short_of_memory_calls_total", "Calls that were refused or ended because streams held more than limits.memory.")
	draining   = gauge("draining", "1 while the proxy drains, and after that.")
	reloads    = counter("config_reloads_total", "Attempts to put another configuration in force; result is success or failure.", "result")
	loaded     = gauge("config_loaded_timestamp_seconds", "When the configuration that is in force was loaded.")
	readable   = gauge("config_file_readable", "0 while the configuration file cannot be read and what was loaded before stays in force, else 1; absent without a file.")
	backConns  = gauge("backend_connections", "Connections to a backend that are open.", "backend")
	connected  = counter("backend_connections_total", "Connections that were made to a backend.", "backend")
	failed     = counter("backend_connect_failures_total", "Connections to a backend that could not be made.", "backend")
	goAways    = counter("backend_goaways_total", "GOAWAY frames from a backend: its connections that drained.", "backend")
	ejections  = counter("backend_ejections_total", "Endpoints of a backend that were ejected.", "backend")
	endpoints  = gauge("backend_endpoints", "Endpoints that a backend has.", "backend")
	lookup     = gauge("backend_discovery_failing", "1 while a backend's endpoints cannot be found; those that were known stay in use.", "backend")
	waiting    = gauge("backend_calls_waiting", "Calls that wait for room at an endpoint of a backend, as limits says.", "backend")
	overloaded = counter("backend_calls_overloaded_total", "Calls that were refused because each endpoint of a backend had as many as limits allows.", "backend")
	checks     = counter("backend_health_checks_total", "Checks of the health of a backend's endpoints; result is serving, not_serving, unimplemented or failed.", "backend", "result")
	endOpen    = gauge("endpoint_open_streams", "Calls that are open at an endpoint, also at one that was removed and still has some.", "backend", "endpoint")
	endConns   = gauge("endpoint_connections", "Connections to an endpoint that are open.", "backend", "endpoint")
	endEjected = gauge("endpoint_ejected", "1 while an endpoint gets no calls because it failed too many.", "backend", "endpoint")
	endHealthy = gauge("endpoint_healthy", "0 while an endpoint gets no calls because checks of its health failed, else 1; absent without healthCheck.", "backend", "endpoint")
	endLatency = gauge("endpoint_latency_seconds", "Time in which an endpoint is expected to answer a unary call (peak EWMA); absent as long as none was measured.", "backend", "endpoint")
	logLines   = counter("access_log_lines_total", "Lines of the access log that were written.")
	logDropped = counter("access_log_dropped_total", "Lines of the access log that were dropped because its file was too slow or failed.")
	tapClients = gauge("tap_clients", "Clients that watch calls.")
	tapDropped = counter("tap_dropped_total", "Events that were dropped because a client of the tap was too slow.")
)

// Catalogue is every metric, for documentation.
func Catalogue() []Metric {
	list := make([]Metric, len(all))
	for i, m := range all {
		list[i] = m.Metric
	}
	return list
}

// Describe is for a registry.
func (m *Metrics) Describe(out chan<- *prometheus.Desc) {
	for _, one := range all {
		out <- one.desc
	}
}

// Collect is for a registry.
func (m *Metrics) Collect(out chan<- prometheus.Metric) {
	send := func(one *metric, value float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(one.desc, one.kind, value, labels...)
	}
	s := m.Proxy.Stats()
	send(clients, float64(s.Connections))
	send(accepted, float64(s.Accepted))
	send(refused, float64(s.RefusedStreams))
	send(full, float64(s.Full))
	send(overCalls, float64(s.OverBudgetCalls))
	send(overConns, float64(s.OverBudgetConnections))
	send(noMemory, float64(s.ShortOfMemory))
	send(draining, one(s.Draining))
	send(reloads, float64(m.reloads.Load()), "success")
	send(reloads, float64(m.failedReloads.Load()), "failure")
	send(loaded, float64(cmp.Or(m.loaded.Load(), m.Proxy.StartedAt().Unix())))
	if m.File != nil {
		if yes, ok := m.File(); ok {
			send(readable, one(yes))
		}
	}
	for i := range s.Routes {
		r := &s.Routes[i]
		method := cmp.Or(r.Method, otherMethods)
		send(calls, float64(r.Opened), r.Route, method)
		send(open, float64(r.Open), r.Route, method)
		if r.Method == "" { // these are counted for the whole route
			send(retries, float64(r.Retries), r.Route)
			send(overBudget, float64(r.OverBudget), r.Route)
			send(replays, float64(r.TransparentRetries), r.Route)
		}
		for j := range r.Calls {
			collectCalls(send, out, r.Route, method, &r.Calls[j])
		}
	}
	for i := range s.Backends {
		b := &s.Backends[i]
		send(backConns, float64(b.Connections), b.Backend)
		send(connected, float64(b.Connected), b.Backend)
		send(failed, float64(b.ConnectFailed), b.Backend)
		send(goAways, float64(b.GoAways), b.Backend)
		send(ejections, float64(b.Ejections), b.Backend)
		send(lookup, one(b.DiscoveryFailing), b.Backend)
		send(waiting, float64(b.Waiting), b.Backend)
		send(overloaded, float64(b.Overloaded), b.Backend)
		for result, n := range b.Checks {
			send(checks, float64(n), b.Backend, result)
		}
		live := 0
		for _, e := range b.Endpoints {
			send(endOpen, float64(e.Open), b.Backend, e.Address)
			send(endConns, float64(e.Connections), b.Backend, e.Address)
			if e.Removed {
				continue
			}
			live++
			send(endEjected, one(e.Ejected), b.Backend, e.Address)
			if b.Checks != nil {
				send(endHealthy, one(!e.Unhealthy), b.Backend, e.Address)
			}
			if e.Latency > 0 {
				send(endLatency, e.Latency.Seconds(), b.Backend, e.Address)
			}
		}
		send(endpoints, float64(live), b.Backend)
	}
	if m.Log != nil {
		send(logLines, float64(m.Log.Lines()))
		send(logDropped, float64(m.Log.Dropped()))
	}
	if m.Tap != nil {
		send(tapClients, float64(m.Tap.Clients()))
		send(tapDropped, float64(m.Tap.Dropped()))
	}
}

var bounds = proxy.Buckets()

// otherMethods stands for all methods that are not counted by themselves.
const otherMethods = "other"

// collectCalls sends what is not zero. Of a backend none of whose calls has ended there are messages and bytes only.
func collectCalls(send func(*metric, float64, ...string), out chan<- prometheus.Metric, route, method string, c *proxy.CallStats) {
	cumulative := map[float64]uint64{}
	count := int64(0)
	for i, bound := range bounds {
		count += c.Took.Counts[i]
		cumulative[bound.Seconds()] = uint64(count)
	}
	count += c.Took.Counts[len(bounds)]
	if count == 0 && c.Requests == 0 && c.Responses == 0 && c.RequestBytes == 0 && c.ResponseBytes == 0 {
		return
	}
	send(messages, float64(c.Requests), route, method, c.Backend, "request")
	send(messages, float64(c.Responses), route, method, c.Backend, "response")
	send(data, float64(c.RequestBytes), route, method, c.Backend, "request")
	send(data, float64(c.ResponseBytes), route, method, c.Backend, "response")
	if count == 0 {
		return
	}
	out <- prometheus.MustNewConstHistogram(took.desc, uint64(count), c.Took.Sum.Seconds(), cumulative, route, method, c.Backend)
	for code, n := range c.ByStatus {
		if n > 0 {
			send(ended, float64(n), route, method, c.Backend, config.Code(code).String())
		}
	}
	for reason, n := range c.ByReason {
		send(reasons, float64(n), route, method, c.Backend, reason)
	}
	send(resets, float64(c.Resets), route, method, c.Backend)
}

func one(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

// seconds is a duration for JSON, to the microsecond.
func seconds(d time.Duration) float64 { return float64(d.Round(time.Microsecond).Microseconds()) / 1e6 }
