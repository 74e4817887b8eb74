package main

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"k8s.io/client-go/rest"
)

// What is asked before there is a configuration is answered when there is one, by the server and with the rights that it names.
func TestLateServer(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.URL.String()+" "+r.Header.Get("Authorization"))
	}))
	defer server.Close()
	var tries atomic.Int32
	missing := errors.New("no configuration")
	late := &lateServer{find: func() (*rest.Config, error) {
		if tries.Add(1) < 3 {
			return nil, missing
		}
		return &rest.Config{Host: server.URL + "/prefix", BearerToken: "token"}, nil
	}}
	client, err := rest.HTTPClientFor(late.config())
	if err != nil {
		t.Fatal(err)
	}
	ask := func(ctx context.Context) (string, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, late.config().Host+"/api/v1/nodes?watch=1", nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := client.Do(req)
		if err != nil {
			return "", err
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		return string(b), err
	}
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := ask(short); !errors.Is(err, missing) {
		t.Errorf("before there is a configuration: %v", err)
	}
	for range 2 {
		if got, err := ask(t.Context()); got != "/prefix/api/v1/nodes?watch=1 Bearer token" || err != nil {
			t.Errorf("asked for %q, %v", got, err)
		}
	}
	if n := tries.Load(); n != 3 {
		t.Errorf("looked for a configuration %d times", n)
	}
}
