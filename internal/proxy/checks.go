package proxy

import (
	"context"
	"math/rand/v2"
	"time"

	"github.com/levada-io/levada/internal/proxy/discovery"
	"github.com/levada-io/levada/internal/proxy/health"
)

// checked is what is known of an endpoint by active checks. Endpoint.mu guards it.
type checked struct {
	known    bool // there was a check
	failures int  // in a row
	serves   int  // in a row
	reason   string
	told     bool // that there is no service for checks
}

// check checks an endpoint until ctx ends.
func (e *endpoint) check(ctx context.Context) {
	authority := e.address
	if network, _ := discovery.Dial(e.address); network != "tcp" {
		authority = "localhost" // the path of a socket is none
	}
	c := &health.Checker{Authority: authority, Dial: e.reach}
	defer c.Close()
	for {
		config := e.cluster.config().HealthCheck
		result, err := c.Check(ctx, config.Service, config.Timeout)
		if ctx.Err() != nil {
			return
		}
		e.cluster.stats.checks[result].Add(1)
		e.noteCheck(result, err)
		// Jitter, so that the checks of many proxies do not come together.
		wait := time.NewTimer(time.Duration(float64(config.Interval) * (0.9 + 0.2*rand.Float64())))
		select {
		case <-ctx.Done():
			wait.Stop()
			return
		case <-wait.C:
		}
	}
}

// noteCheck draws the conclusion from a check. The first one decides at once, and so does a server that says itself that it does not serve; others by the thresholds.
func (e *endpoint) noteCheck(result health.Result, err error) {
	config, log := e.cluster.config().HealthCheck, e.cluster.proxy.log.With("backend", e.cluster.name, "endpoint", e.address)
	e.mu.Lock()
	k := &e.checked
	first := !k.known
	k.known = true
	was := !e.unhealthy.Load()
	healthy := was
	if k.reason = ""; err != nil {
		k.reason = err.Error()
	}
	tell := false
	switch result {
	case health.Serving, health.Unimplemented:
		k.failures = 0
		k.serves++
		healthy = was || first || k.serves >= config.HealthyThreshold
		if result == health.Unimplemented {
			tell, k.told = !k.told, true
		}
	case health.NotServing:
		k.serves = 0
		k.failures++
		healthy = false
	case health.Failed:
		k.serves = 0
		k.failures++
		healthy = was && !first && k.failures < config.UnhealthyThreshold
	}
	failures := k.failures
	e.unhealthy.Store(!healthy)
	e.mu.Unlock()
	if tell {
		log.Warn("endpoint has no grpc.health.v1.Health service, counts as healthy as long as it answers")
	}
	switch {
	case was && !healthy:
		log.Warn("endpoint unhealthy, gets no new calls", "result", result.String(), "checks", failures, "error", err)
	case !was && healthy:
		log.Info("endpoint healthy again")
		var w wakeups
		e.cluster.serveQueue(&w)
		w.flush()
	}
}

// watchHealth starts the checks of an endpoint, if there are any for its backend.
func (c *cluster) watchHealth(e *endpoint) {
	if c.config().HealthCheck.Interval == 0 || c.proxy.dialing.Err() != nil {
		return
	}
	ctx, stop := context.WithCancel(c.proxy.dialing)
	e.mu.Lock()
	if e.unchecked = stop; e.removed { // meanwhile
		stop()
	}
	e.mu.Unlock()
	c.proxy.background.Go(func() { e.check(ctx) })
}
