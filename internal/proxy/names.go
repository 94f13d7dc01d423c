package proxy

import (
	"maps"
	"slices"
	"strings"

	"github.com/levada-io/levada/internal/proxy/config"
)

// What filters of calls may name. A name that no call can have is an error for who asks, and not an empty answer.

// RouteNames are the routes that calls can have: those that are configured, former ones with open calls, and "none" for calls that no route matches.
func (p *Proxy) RouteNames() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	names := map[string]bool{}
	for key := range p.routes {
		names[key.route] = true
	}
	return slices.Sorted(maps.Keys(names))
}

// EndpointNames are the endpoints that backends have, and former ones with open calls. Fixed: no others can appear before the next reload, as no backend looks its endpoints up.
func (p *Proxy) EndpointNames() (names []string, fixed bool) {
	known := map[string]bool{}
	fixed = true
	for _, x := range append(p.sortedClusters(), p.retiredClusters()...) {
		for _, b := range append(slices.Clone(x.set.Backends()), x.left()...) {
			known[b.Address] = true
		}
		scheme, _, looked := strings.Cut(x.config().Target, ":///")
		fixed = fixed && x.known.Load() && (!looked || strings.HasSuffix(scheme, "unix"))
	}
	return slices.Sorted(maps.Keys(known)), fixed
}

// RouteTakes reports whether a call whose path is the pattern, which may end with a star, can have the route. One with an unknown name can.
func (p *Proxy) RouteTakes(route, pattern string) bool {
	known := false
	for _, r := range p.state.Load().config.Routes {
		if r.Match.String() != route {
			continue
		}
		if overlap(pathsOf(r.Match), pattern) {
			return true
		}
		known = true
	}
	return !known
}

// pathsOf is the pattern of the paths that a match can be for.
func pathsOf(m config.Match) string {
	switch prefix, ok := strings.CutSuffix(m.Service, ".*"); {
	case m.Service == "":
		return "*"
	case ok:
		return "/" + prefix + ".*"
	case m.Method != "":
		return "/" + m.Service + "/" + m.Method
	}
	return "/" + m.Service + "/*"
}

// overlap reports whether there can be a path that is both patterns; an empty one is for all paths.
func overlap(a, b string) bool {
	startA, starA := strings.CutSuffix(a, "*")
	startB, starB := strings.CutSuffix(b, "*")
	switch {
	case a == "" || b == "" || starA && starB && (strings.HasPrefix(startA, startB) || strings.HasPrefix(startB, startA)):
		return true
	case starA && !starB:
		return strings.HasPrefix(b, startA)
	case starB && !starA:
		return strings.HasPrefix(a, startB)
	}
	return a == b
}
