package engine

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/levada-io/levada/internal/metrics"
)

// degradedBroker is a broker with something wrong.
type degradedBroker struct {
	usable   error
	degraded []error
}

func (b *degradedBroker) Stuck() error                 { return nil }
func (b *degradedBroker) Usable(context.Context) error { return b.usable }
func (b *degradedBroker) Degraded() []error            { return b.degraded }

// TestReadinessNamesWhatIsDegraded: replicas that are offline do not fail the probe. Asked for details, it names them.
func TestReadinessNamesWhatIsDegraded(t *testing.T) {
	offline, stopped := errors.New("stream a: offline: n3"), errors.New("stream b: it has no leader")
	for name, c := range map[string]struct {
		broker degradedBroker
		path   string
		code   int
		body   string
		usable string
	}{
		"healthy":            {degradedBroker{}, "/readyz", http.StatusNoContent, "", "1"},
		"healthy, verbose":   {degradedBroker{}, "/readyz?verbose", http.StatusOK, "ok\n", "1"},
		"degraded":           {degradedBroker{degraded: []error{offline}}, "/readyz", http.StatusNoContent, "", "1"},
		"degraded, verbose":  {degradedBroker{degraded: []error{offline}}, "/readyz?verbose", http.StatusOK, "ok\nnote: stream a: offline: n3\n", "1"},
		"stopped":            {degradedBroker{usable: stopped}, "/readyz", http.StatusServiceUnavailable, "stream b: it has no leader\n", "0"},
		"stopped, verbose":   {degradedBroker{stopped, []error{offline}}, "/readyz?verbose", http.StatusServiceUnavailable, "stream b: it has no leader\nnote: stream a: offline: n3\n", "0"},
		"alive all the same": {degradedBroker{stopped, []error{offline}}, "/livez?verbose", http.StatusOK, "ok\n", "0"},
	} {
		t.Run(name, func(t *testing.T) {
			p := &Process{Broker: &c.broker}
			p.ready.Store(true)
			mux := http.NewServeMux()
			p.Routes(mux, metrics.New("test"))
			w := httptest.NewRecorder()
			mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, c.path, nil))
			if w.Code != c.code || w.Body.String() != c.body {
				t.Errorf("%d %q", w.Code, w.Body)
			}
			w = httptest.NewRecorder()
			mux.ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", nil))
			if want := "levada_buffer_service_usable " + c.usable; !strings.Contains(w.Body.String(), want) {
				t.Errorf("no %s in the metrics", want)
			}
		})
	}
}
