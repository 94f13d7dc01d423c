package admin

import (
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/levada-io/levada/internal/proxy"
	"github.com/levada-io/levada/internal/strictyaml"
)

// noteHeader says of an answer that may stay empty why it may, for people.
const noteHeader = "Levada-Note"

// checkFilter reports a filter that no call can pass: it would be waited for without end. What may come later, such as a method that was not called yet or an endpoint that
// discovery may find, is answered, with a note.
func (s *Server) checkFilter(route, path, endpoint string) (note string, err error) {
	if err := s.checkRoute(route, path); err != nil {
		return "", err
	}
	var notes []string
	if endpoint != "" {
		note, err := s.checkEndpoint(endpoint)
		if err != nil {
			return "", err
		}
		notes = append(notes, note)
	}
	if path != "" {
		notes = append(notes, s.checkPath(path))
	}
	return strings.Join(slices.DeleteFunc(notes, func(n string) bool { return n == "" }), "; "), nil
}

func (s *Server) checkRoute(route, path string) error {
	if route == "" {
		return nil
	}
	if names := s.Proxy.RouteNames(); !slices.Contains(names, route) {
		return fmt.Errorf("route=%.100q: no route has this name%s", route, near(route, names))
	}
	if !s.Proxy.RouteTakes(route, path) {
		return fmt.Errorf("route=%.100q and path=%.100q: no call of this path has this route", route, path)
	}
	return nil
}

func (s *Server) checkEndpoint(endpoint string) (note string, err error) {
	names, fixed := s.Proxy.EndpointNames()
	if slices.Contains(names, endpoint) {
		return "", nil
	}
	if _, _, err := net.SplitHostPort(endpoint); err != nil && !strings.HasPrefix(endpoint, "unix:") {
		return "", fmt.Errorf("endpoint=%.100q: expected host:port or unix:PATH, as /endpoints shows it%s", endpoint, near(endpoint, names))
	}
	if fixed {
		return "", fmt.Errorf("endpoint=%.100q: no backend has this endpoint%s", endpoint, near(endpoint, names))
	}
	return fmt.Sprintf("no backend has the endpoint %.100q now, discovery may find it later%s", endpoint, near(endpoint, names)), nil
}

func (s *Server) checkPath(path string) (note string) {
	var paths []string
	for _, m := range s.Proxy.Methods() {
		if proxy.MatchPath(path, m.Path) {
			return ""
		}
		paths = append(paths, m.Path)
	}
	return fmt.Sprintf("no call of %.100q has come so far%s", path, near(path, paths))
}

// mostNames that an error lists.
const mostNames = 12

// near is what to try instead of a name.
func near(name string, names []string) string {
	if guess := strictyaml.Suggest(name, names); guess != "" {
		return fmt.Sprintf("; did you mean %q?", guess)
	}
	switch {
	case len(names) == 0:
		return "; there are none"
	case len(names) > mostNames:
		return fmt.Sprintf("; there are %d, such as %s", len(names), strings.Join(names[:mostNames], ", "))
	}
	return "; there are: " + strings.Join(names, ", ")
}
