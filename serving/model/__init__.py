"""One replica of a model: what it loads, answers, explains and watches."""
