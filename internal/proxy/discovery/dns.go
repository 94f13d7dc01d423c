package discovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strconv"
	"time"
)

// dns looks a name up again and again.
type dns struct {
	target  string
	look    look
	options Options
	tracker *Tracker
	doubts  chan struct{}
}

// look asks the name server once. The error is errNone if the name does not exist or has no endpoints. Endpoints that come with another
// error are the best to be had.
type look func(ctx context.Context) ([]string, error)

var errNone = errors.New("the name does not exist or has no records")

func newDNS(target string, look look, o Options) *dns {
	return &dns{target: target, look: look, options: o, tracker: NewTracker(target, o.Logger), doubts: make(chan struct{}, 1)}
}

func (d *dns) Status() Status { return d.tracker.Status() }
func (d *dns) String() string { return d.target }

// Doubt has the name looked up again soon.
func (d *dns) Doubt() {
	select {
	case d.doubts <- struct{}{}:
	default:
	}
}

func (d *dns) Run(ctx context.Context, update func([]string)) error {
	// As long as nothing is known, calls fail: the first looks follow sooner.
	wait := min(250*time.Millisecond, d.options.Interval)
	none, early := 0, false
	var counted time.Time
	for {
		looking, cancel := context.WithTimeout(ctx, d.options.Timeout)
		endpoints, err := d.look(looking)
		cancel()
		if ctx.Err() != nil {
			return nil
		}
		switch {
		case err == nil:
			none = 0
			d.tracker.Succeed(endpoints, update)
		case errors.Is(err, errNone):
			if !early || time.Since(counted) >= d.options.Interval*8/10 { // doubts do not make an accident of the name server's a decision
				none++
				counted = time.Now()
			}
			if none >= d.options.EmptyAfter {
				d.tracker.Replace(nil, update)
			}
			d.tracker.Fail(err)
		default:
			none = 0
			if len(endpoints) > 0 {
				d.tracker.Replace(endpoints, update)
			}
			d.tracker.Fail(err)
		}
		if d.tracker.Status().Known {
			wait = d.options.Interval
		}
		if early = d.pause(ctx, wait); ctx.Err() != nil {
			return nil
		}
		wait = min(2*wait, d.options.Interval)
	}
}

// doubtWait is the least time between two looks, however much the list is doubted.
const doubtWait = time.Second

// pause waits until ctx ends or, if the list is not doubted before, for the whole time; it reports whether it was less.
func (d *dns) pause(ctx context.Context, wait time.Duration) bool {
	due := time.NewTimer(jitter(wait))
	defer due.Stop()
	soonest := time.NewTimer(jitter(min(wait, doubtWait)))
	defer soonest.Stop()
	select {
	case <-ctx.Done():
		return true
	case <-soonest.C:
	}
	select {
	case <-ctx.Done():
	case <-d.doubts:
	case <-due.C:
		return false
	}
	return true
}

// addresses looks for the addresses of a host. IPv4 and IPv6 are asked for apart: one question for both is answered with what there
// is when the other half failed, and half of the endpoints would seem to be gone. Of the half that failed, the last answer stands.
func addresses(resolver Resolver, host, port string) look {
	var last [2][]string
	return func(ctx context.Context) ([]string, error) {
		var found [2][]string
		var failed [2]error
		for i, network := range []string{"ip4", "ip6"} {
			list, err := resolver.LookupNetIP(ctx, network, host)
			if err != nil && !isNone(err) {
				failed[i] = fmt.Errorf("look up addresses of %s (%s): %w", host, network, err)
			}
			for _, address := range list {
				found[i] = append(found[i], net.JoinHostPort(address.Unmap().String(), port))
			}
		}
		if len(found[0])+len(found[1]) == 0 {
			if err := cmp.Or(failed[0], failed[1]); err != nil {
				return nil, err
			}
			return nil, fmt.Errorf("look up addresses of %s: %w", host, errNone)
		}
		for i := range found {
			if failed[i] == nil {
				last[i] = found[i]
			}
		}
		return slices.Concat(last[0], last[1]), cmp.Or(failed[0], failed[1])
	}
}

// services looks for service records, of which those of the best priority count. Weights do not: load does.
func services(resolver Resolver, name string) look {
	return func(ctx context.Context) ([]string, error) {
		_, records, err := resolver.LookupSRV(ctx, "", "", name)
		var endpoints []string
		for _, record := range records { // sorted by priority
			if record.Priority != records[0].Priority || record.Target == "." { // a lone dot says that there is no such service
				continue
			}
			endpoint, bad := ParseEndpoint(net.JoinHostPort(record.Target, strconv.Itoa(int(record.Port))))
			if bad != nil {
				err = bad
				continue
			}
			endpoints = append(endpoints, endpoint)
		}
		switch {
		case err != nil && !isNone(err):
			return endpoints, fmt.Errorf("look up service records of %s: %w", name, err)
		case len(endpoints) == 0:
			return nil, fmt.Errorf("look up service records of %s: %w", name, errNone)
		}
		return endpoints, nil
	}
}

// isNone says whether the answer was that there are no such records. A name server that did not answer is another thing.
func isNone(err error) bool {
	if _, ok := errors.AsType[*net.AddrError](err); ok { // there are only addresses of the other kind, in /etc/hosts or as the name itself
		return true
	}
	failure, ok := errors.AsType[*net.DNSError](err)
	return ok && failure.IsNotFound && !failure.IsTimeout && !failure.IsTemporary
}

// jitter is d, give or take a tenth, so that replicas do not ask together.
func jitter(d time.Duration) time.Duration {
	return d - d/10 + rand.N(d/5+1)
}
