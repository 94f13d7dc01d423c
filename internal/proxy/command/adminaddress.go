package command

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"

	"github.com/levada-io/levada/internal/proxy/admin"
	"github.com/levada-io/levada/internal/proxy/config"
	"github.com/levada-io/levada/internal/proxy/observe"
)

// adminAddresses are the administrative addresses that are served: admin.address and admin.control. A reload opens, closes and changes them. Only the goroutine
// that reloads uses them.
type adminAddresses struct {
	run      *run
	ctx      context.Context // until which they are served; it outlasts the proxy's Run
	group    *sync.WaitGroup // what serves them
	tap      *observe.Tap
	registry *prometheus.Registry
	open     []*adminAddress
}

// adminAddress is one of them.
type adminAddress struct {
	wanted wantedAddress
	server *admin.Server
	socket net.Listener
	stop   func()
}

// wantedAddress is an administrative address as a configuration has it.
type wantedAddress struct {
	address     string
	what, field string // for people
	access      admin.Access
}

// key is the same for all forms of an address.
func (w *wantedAddress) key() string {
	if path, ok := strings.CutPrefix(w.address, "unix:"); ok {
		return "unix:" + filepath.Clean(path)
	}
	return w.address
}

func (w *wantedAddress) port() string {
	_, port, err := net.SplitHostPort(w.address)
	if err != nil || strings.HasPrefix(w.address, "unix:") {
		return ""
	}
	return port
}

func newAdminAddresses(ctx context.Context, r *run, tap *observe.Tap, group *sync.WaitGroup) *adminAddresses {
	registry := prometheus.NewRegistry()
	registry.MustRegister(r.metrics, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "levada_build_info", Help: "1, with the version as a label.",
			ConstLabels: prometheus.Labels{"version": r.Version}}, func() float64 { return 1 }))
	return &adminAddresses{run: r, ctx: ctx, group: group, tap: tap, registry: registry}
}

func wantedAddresses(c config.Admin) (all []wantedAddress) {
	if c.Address != "" {
		w := wantedAddress{address: c.Address, what: "metrics, probes and the state", field: "--admin, admin.address", access: admin.Access{TokenFile: c.TokenFile}}
		if c.Control != "" {
			w.what, w.access.Elsewhere = "metrics and probes", c.Control
		}
		all = append(all, w)
	}
	if c.Control != "" {
		all = append(all, wantedAddress{address: c.Control, what: "control and the state", field: "--admin-control, admin.control", access: admin.Access{TokenFile: c.TokenFile, Remote: true}})
	}
	return all
}

// adminChange is a change of the addresses that has been prepared: the new ones are open, and not served yet.
type adminChange struct {
	of      *adminAddresses
	kept    map[*adminAddress]wantedAddress
	added   []*adminAddress
	removed []*adminAddress
	closed  []wantedAddress // of removed, those that were in the way of a new one
}

// prepare opens what a configuration adds. With an error, everything is as it was before.
func (a *adminAddresses) prepare(c config.Admin) (*adminChange, error) {
	change := &adminChange{of: a, kept: map[*adminAddress]wantedAddress{}, removed: slices.Clone(a.open)}
	var missing []wantedAddress
	for _, w := range wantedAddresses(c) {
		i := slices.IndexFunc(change.removed, func(x *adminAddress) bool { return x.wanted.key() == w.key() })
		if i < 0 {
			missing = append(missing, w)
			continue
		}
		change.kept[change.removed[i]] = w
		change.removed = slices.Delete(change.removed, i, i+1)
	}
	for _, w := range missing {
		x, err := a.listen(w)
		if errors.Is(err, syscall.EADDRINUSE) && change.makeWay(w) {
			x, err = a.listen(w)
		}
		if err != nil {
			return nil, errors.Join(err, change.undo())
		}
		change.added = append(change.added, x)
	}
	return change, nil
}

// makeWay closes removed addresses that are in the way of a new one, as :9901 is of 127.0.0.1:9901, and reports whether there are any.
func (c *adminChange) makeWay(w wantedAddress) bool {
	before := len(c.removed)
	c.removed = slices.DeleteFunc(c.removed, func(old *adminAddress) bool {
		if w.port() == "" || old.wanted.port() != w.port() {
			return false
		}
		old.stop()
		c.closed = append(c.closed, old.wanted)
		c.of.forget(old)
		return true
	})
	return len(c.removed) < before
}

// undo closes what was opened, and opens what was closed.
func (c *adminChange) undo() error {
	for _, x := range c.added {
		_ = x.socket.Close()
	}
	var failed []error
	for _, w := range c.closed {
		x, err := c.of.listen(w)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		c.of.serve(x)
	}
	return errors.Join(failed...)
}

// commit puts the change in force. Answers that are under way at an address that has gone are finished, within a second.
func (c *adminChange) commit() {
	for x, w := range c.kept {
		if x.wanted.access != w.access {
			x.server.SetAccess(w.access)
			c.of.run.logger.Info("access to an administrative address changed", "address", x.socket.Addr().String(), "serves", w.what)
		}
		x.wanted = w
	}
	for _, x := range c.removed {
		c.of.run.logger.Info("administrative address removed, closing", "address", x.socket.Addr().String())
		x.stop()
		c.of.forget(x)
	}
	for _, x := range c.added {
		c.of.serve(x)
	}
}

func (a *adminAddresses) forget(x *adminAddress) {
	a.open = slices.DeleteFunc(a.open, func(other *adminAddress) bool { return other == x })
}

func (a *adminAddresses) listen(w wantedAddress) (*adminAddress, error) {
	socket, err := admin.Listen(w.address)
	if err != nil {
		return nil, fmt.Errorf("listen for %s (%s): %w", w.what, w.field, err)
	}
	r := a.run
	server := &admin.Server{Proxy: r.proxy, Tap: a.tap, Metrics: prometheus.Gatherer(a.registry), Logger: r.logger, Version: r.Version, Pprof: r.pprof, Notes: r.file.notes}
	server.SetAccess(w.access)
	return &adminAddress{wanted: w, server: server, socket: &closedOnce{Listener: socket}}, nil
}

// serve answers at an address until it is stopped.
func (a *adminAddresses) serve(x *adminAddress) {
	ctx, cancel := context.WithCancel(a.ctx)
	x.stop = func() {
		cancel()
		_ = x.socket.Close() // at once: another one may be in need of the port
	}
	a.open = append(a.open, x)
	a.run.logger.Info(x.wanted.what, "address", x.socket.Addr().String())
	a.group.Go(func() {
		defer cancel()
		if err := x.server.Serve(ctx, x.socket); err != nil && ctx.Err() == nil {
			a.run.logger.Error("the administrative address is not served any more", "error", err)
		}
	})
}

// closedOnce is a listener for those who close it a second time.
type closedOnce struct {
	net.Listener
	once sync.Once
	err  error
}

func (c *closedOnce) Close() error {
	c.once.Do(func() { c.err = c.Listener.Close() })
	return c.err
}
